"""Fine-tuning recipes: which parameters stand still, and which learn slower than the others, by their paths. No jax
here: a recipe is read while a configuration is checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from irm_jax.errors import UserError

TOWERS = ("image_encoder", "text_encoder", "template_encoder")


class RecipeError(UserError, ValueError):
    """A recipe that is malformed or that fits no parameter; the message says what to write."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Factors of the learning rate, multiplied with each other.

    `frozen`: pattern of paths that do not change at all ('' = none). `multipliers`: ("PATTERN=FACTOR", ...); the first
    pattern that a path fits counts. `layer_decay`: in a tower of n blocks, block k (from 0) learns with
    layer_decay^(n - k), what stands before the blocks with layer_decay^(n + 1), what follows them with 1 (BEiT's rule).
    """

    frozen: str = ""
    multipliers: tuple[str, ...] = ()
    layer_decay: float = 1.0

    def rules(self) -> list[tuple[str, float]]:
        """[(pattern, factor)]. Raises RecipeError for one that cannot be read."""
        found = []
        for text in self.multipliers:
            pattern, equals, factor = text.rpartition("=")
            try:
                found.append((re.compile(pattern).pattern, float(factor)))
            except (ValueError, re.error) as error:
                raise RecipeError(f"{text!r} is no PATTERN=FACTOR, such as '^image_encoder/=0.1': {error}") from error
            if not equals or not pattern or not found[-1][1] >= 0:
                raise RecipeError(f"{text!r} is no PATTERN=FACTOR, such as '^image_encoder/=0.1', of a factor >= 0")
        return found

    def check(self) -> None:
        """Raises RecipeError for what is wrong whatever the parameters are."""
        self.rules()
        try:
            re.compile(self.frozen)
        except re.error as error:
            raise RecipeError(f"frozen = {self.frozen!r} is no regular expression: {error}") from error
        if not 0 < self.layer_decay <= 1:
            raise RecipeError(f"layer_decay = {self.layer_decay} must be above 0 and at most 1 (1 = none)")

    def factors(self, paths: Sequence[str]) -> list[float]:
        """The factor of every parameter, `paths` being all of them.

        Raises RecipeError for a pattern that no path fits: it would silently do nothing.
        """
        rules = self.rules()
        patterns = [self.frozen] if self.frozen else []
        for pattern in [*patterns, *(pattern for pattern, _ in rules)]:
            if not any(re.search(pattern, path) for path in paths):
                towers = ", ".join(sorted({path.split("/")[0] for path in paths}))
                raise RecipeError(f"no parameter's path fits {pattern!r}; the paths begin with {towers}")
        depths = {tower: len({m[1] for m in (_block(tower, path) for path in paths) if m}) for tower in TOWERS}

        def one(path: str) -> float:
            if self.frozen and re.search(self.frozen, path):
                return 0.0
            factor = next((factor for pattern, factor in rules if re.search(pattern, path)), 1.0)
            tower = path.split("/")[0]
            if tower in depths and self.layer_decay < 1:
                block = _block(tower, path)
                number = int(block[1]) if block else depths[tower] if "/final_norm/" in path else -1
                factor *= self.layer_decay ** (depths[tower] - number)
            return factor

        return [one(path) for path in paths]


def _block(tower: str, path: str) -> re.Match[str] | None:
    return re.match(rf"{tower}/blocks/layer_(\d+)/", path)

"""Learning rates per layer for fine-tuning: which parameters are frozen or learn slower, by their paths.

No jax here: the checks of a configuration read these rates.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from irm_jax.errors import UserError

TOWERS = ("image_encoder", "text_encoder", "template_encoder")


class LayerRatesError(UserError, ValueError):
    """Rates that are malformed or match no parameter; the message says what to write."""


@dataclasses.dataclass(frozen=True)
class LayerRates:
    """Factors of the learning rate per parameter path; the factors of several rules are multiplied.

    Attributes:
        frozen: pattern of the paths that do not change ('' = none).
        multipliers: ("PATTERN=FACTOR", ...); the first pattern that matches a path counts.
        layer_decay: in a tower of n blocks, block k (from 0) learns with layer_decay^(n - k), what precedes the blocks
            with layer_decay^(n + 1), and what follows them with 1 (BEiT, arXiv 2106.08254).
    """

    frozen: str = ""
    multipliers: tuple[str, ...] = ()
    layer_decay: float = 1.0

    def rules(self) -> list[tuple[str, float]]:
        """Returns [(pattern, factor)] of the multipliers. Raises LayerRatesError for one that cannot be read."""
        found = []
        for text in self.multipliers:
            pattern, equals, factor = text.rpartition("=")
            try:
                found.append((re.compile(pattern).pattern, float(factor)))
            except (ValueError, re.error) as error:
                raise LayerRatesError(
                    f"{text!r} is no PATTERN=FACTOR, such as '^image_encoder/=0.1': {error}"
                ) from error
            if not equals or not pattern or not found[-1][1] >= 0:
                raise LayerRatesError(f"{text!r} is no PATTERN=FACTOR, such as 'encoder/=0.1', with a factor >= 0")
        return found

    def check(self) -> None:
        """Raises LayerRatesError for rates that are wrong whatever the parameters are."""
        self.rules()
        try:
            re.compile(self.frozen)
        except re.error as error:
            raise LayerRatesError(f"frozen = {self.frozen!r} is no regular expression: {error}") from error
        if not 0 < self.layer_decay <= 1:
            raise LayerRatesError(f"layer_decay = {self.layer_decay} must be above 0 and at most 1 (1 = none)")

    def factors(self, paths: Sequence[str]) -> list[float]:
        """Returns the factor of each of `paths`, which are all paths of the parameters.

        Raises LayerRatesError for a pattern that matches no path: it would silently do nothing.
        """
        rules = self.rules()
        patterns = [self.frozen] if self.frozen else []
        for pattern in [*patterns, *(pattern for pattern, _ in rules)]:
            if not any(re.search(pattern, path) for path in paths):
                towers = ", ".join(sorted({path.split("/")[0] for path in paths}))
                raise LayerRatesError(f"no parameter's path fits {pattern!r}; the paths begin with {towers}")
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

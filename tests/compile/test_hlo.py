"""Bytes read from a compiled program: hand-made texts, and a scanned model against the same unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from irm_jax.compile.hlo import Module
from irm_jax.compile.traffic import count_traffic
from irm_jax.models import transformer
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules

LOOP = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.9 = f32[]{:T(128)} add(%a, %b)
}

%pick (p.0: f32[12,64], p.1: s32[]) -> f32[64] {
  %p.0 = f32[12,64]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %part = f32[1,64]{1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,64}
  ROOT %flat = f32[64]{0:T(128)} bitcast(%part)
}

%body (state: (s32[], f32[64], f32[12,64])) -> (s32[], f32[64], f32[12,64]) {
  %state = (s32[]{:T(128)}, f32[64]{0:T(128)}, f32[12,64]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[64]{0:T(128)} get-tuple-element(%state), index=1
  %w = f32[12,64]{1,0:T(8,128)} get-tuple-element(%state), index=2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %layer = f32[64]{0:T(128)} fusion(%w, %i), kind=kLoop, calls=%pick
  %reduced = f32[64]{0:T(128)} all-reduce(%layer), channel_id=1, replica_groups=[2,8]<=[16], to_apply=%sum
  ROOT %out = (s32[]{:T(128)}, f32[64]{0:T(128)}, f32[12,64]{1,0:T(8,128)}) tuple(%next, %reduced, %w)
}

%more (state.1: (s32[], f32[64], f32[12,64])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}, f32[12,64]{1,0:T(8,128)}) parameter(0)
  %trips = s32[]{:T(128)} constant(12)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %trips), direction=LT
}

ENTRY %main (x.0: f32[64], w.0: f32[12,64]) -> (f32[64], f32[128]) {
  %x.0 = f32[64]{0:T(128)} parameter(0)
  %w.0 = f32[12,64]{1,0:T(8,128)} parameter(1)
  %start = s32[]{:T(128)} constant(0)
  %first = s32[]{:T(128)} copy(%start)
  %all = (s32[]{:T(128)}, f32[64]{0:T(128)}, f32[12,64]{1,0:T(8,128)}) tuple(%first, %x.0, %w.0)
  %loop = (s32[]{:T(128)}, f32[64]{0}, /*index=2*/f32[12,64]{1,0:T(8,128)}) while(%all), condition=%more, body=%body
  %end = f32[64]{0:T(128)} get-tuple-element(%loop), index=1
  %near = f32[64]{0:T(128)S(1)} copy(%end)
  %gather = (f32[64]{0:T(128)S(1)}, f32[128]{0}) all-gather-start(%near), replica_groups={{0,1},{2,3}}, dimensions={0}
  %whole = f32[128]{0:T(128)} all-gather-done(%gather)
  ROOT %result = (f32[64]{0:T(128)}, f32[128]{0:T(128)}) tuple(%end, %whole)
}
"""


def test_loops_of_a_text_without_trip_counts():
    found = count_traffic(LOOP)
    assert found.unknown_loops == 0
    assert found.collective_bytes() == {"all-reduce": 12 * 64 * 4, "all-gather": 128 * 4}
    gather, reduce = sorted(found.collectives, key=lambda one: one.kind)
    assert (reduce.times, len(reduce.groups), reduce.groups[1]) == (12, 2, tuple(range(8, 16)))
    assert gather.groups == ((0, 1), (2, 3))
    # A trip: the layer's slice (not all twelve), its copy, the sum's operand and result, the counter; then the copy
    # into the chip and the gathered array. What lies in the chip itself does not count.
    trip = 2 * 64 * 4 + 4 + 2 * 64 * 4 + 3 * 4 + (4 + 4 + 1)
    assert found.memory_bytes == pytest.approx(12 * trip + 64 * 4 + 128 * 4 + 2 * 4, abs=16)


def test_a_noted_trip_count_goes_first_and_an_unknown_one_is_told():
    noted = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert count_traffic(noted).collective_bytes()["all-reduce"] == 5 * 256
    unknown = count_traffic(LOOP.replace("constant(12)", "parameter(1)"))
    assert unknown.unknown_loops == 1
    assert unknown.collective_bytes()["all-reduce"] == 256
    with pytest.raises(ValueError, match="no ENTRY"):
        Module("module {}")


ASYNC = """HloModule jit_gather, is_scheduled=true

%gather (p: f32[64]) -> f32[128] {
  %p = f32[64]{0} parameter(0)
  ROOT %wide = f32[128]{0} all-gather(%p), channel_id=1, replica_groups={{0,1}}, dimensions={0}
}

ENTRY %main (x: f32[64]) -> f32[128] {
  %x = f32[64]{0} parameter(0)
  %start = ((f32[64]{0}), f32[128]{0}, s32[]) async-start(%x), calls=%gather
  ROOT %done = f32[128]{0} async-done(%start), calls=%gather
}
"""
STARTED = """HloModule jit_gather, is_scheduled=true

ENTRY %main (x: f32[64]) -> f32[128] {
  %x = f32[64]{0} parameter(0)
  %start = (f32[64]{0}, f32[128]{0}) all-gather-start(%x), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  ROOT %done = f32[128]{0} all-gather-done(%start)
}
"""


@pytest.mark.parametrize("text", [ASYNC, STARTED])
def test_a_collective_in_two_parts_moves_its_bytes_once(text):
    """256 bytes are read and 512 written, however the instruction that starts it names its operand again."""
    found = count_traffic(text)
    assert found.collective_bytes() == {"all-gather": 512}
    assert found.memory_bytes == 256 + 512


NESTED = """HloModule jit_layer, is_scheduled=true

%cut (a: f32[12,64], i: s32[]) -> f32[1,64] {
  %a = f32[12,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %o = s32[] constant(0)
  ROOT %row = f32[1,64]{1,0} dynamic-slice(%a, %i, %o), dynamic_slice_sizes={1,64}
}

%put (stack: f32[12,64], part: f32[1,64], n: s32[]) -> f32[12,64] {
  %stack = f32[12,64]{1,0} parameter(0)
  %part = f32[1,64]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %kept = f32[12,64]{1,0} dynamic-update-slice(%stack, %part, %n, %z)
}

%layer (w: f32[12,64], k: s32[], kept.0: f32[12,64]) -> f32[12,64] {
  %w = f32[12,64]{1,0} parameter(0)
  %k = s32[] parameter(1)
  %kept.0 = f32[12,64]{1,0} parameter(2)
  %view = f32[12,64]{1,0} bitcast(%w)
  %mine = f32[1,64]{1,0} fusion(%view, %k), kind=kLoop, calls=%cut
  %twice = f32[1,64]{1,0} add(%mine, %mine)
  ROOT %new = f32[12,64]{1,0} fusion(%kept.0, %twice, %k), kind=kLoop, calls=%put
}

ENTRY %main (x: f32[12,64], j: s32[], y: f32[12,64]) -> f32[12,64] {
  %x = f32[12,64]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %y = f32[12,64]{1,0} parameter(2)
  ROOT %done = f32[12,64]{1,0} fusion(%x, %j, %y), kind=kOutput, calls=%layer
}
"""


def test_slices_in_fusions_of_fusions_are_read_and_written_alone():
    """A layer's row of the parameters' stack is read, one of the activations' stack written."""
    row = 64 * 4
    assert count_traffic(NESTED).memory_bytes == 2 * row + 4
    whole = NESTED.replace("add(%mine, %mine)", "add(%mine, %w)")  # used otherwise as well: all of it is read
    assert count_traffic(whole).memory_bytes == 12 * row + row + 4


FUSED = """HloModule jit_gather, is_scheduled=true

%first (p: f32[64]) -> f32[128] {
  %p = f32[64]{0} parameter(0)
  ROOT %wide = f32[128]{0} all-gather(%p), channel_id=1, replica_groups=GROUPS, dimensions={0}
}

%second (q: f32[64]) -> f32[128] {
  %q = f32[64]{0} parameter(0)
  ROOT %wide.1 = f32[128]{0} all-gather(%q), channel_id=1, replica_groups=GROUPS, dimensions={0}
}

ENTRY %main (x: f32[64]) -> f32[128] {
  %x = f32[64]{0} parameter(0)
  %begin = f32[128]{0} fusion(%x), kind=kCustom, calls=%first
  ROOT %end = f32[128]{0} fusion(%x), kind=kCustom, calls=%second
}
"""


def test_a_collective_that_several_fusions_name_is_one():
    found = count_traffic(FUSED.replace("GROUPS", "{{0,1}}"))
    assert found.collective_bytes() == {"all-gather": 512}
    other = FUSED.replace("GROUPS", "{{0,1}}").replace("channel_id=1", "channel_id=2", 1)
    assert count_traffic(other).collective_bytes() == {"all-gather": 1024}


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}", ((0, 3), (1, 2))),
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=2,'b'=4] {'a','b':(1)2}", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("{}", ()),
    ],
)
def test_the_ways_in_which_groups_are_written(written, groups):
    assert count_traffic(FUSED.replace("GROUPS", written)).collectives[0].groups == groups


def test_groups_in_an_unknown_form_are_logged(caplog):
    assert count_traffic(FUSED.replace("GROUPS", "torus(2)")).collectives[0].groups == ()
    assert "groups in an unknown form" in caplog.text


def gradient_text(scan, mesh):
    """The compiled gradient of a two-block transformer, its parameters laid out by the rule table."""
    config = transformer.BlockConfig(width=128, heads=4)
    stack = transformer.Stack(config, 2, scan_layers=scan)
    x = jax.ShapeDtypeStruct((16, 32, 128), jnp.float32, sharding=NamedSharding(mesh, P(mesh_lib.ROWS)))
    variables = jax.eval_shape(lambda x: stack.init(jax.random.key(0), x, deterministic=True), jnp.zeros(x.shape))
    layouts = rules.shardings(variables, mesh)
    variables = jax.tree.map(lambda v, s: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=s), variables, layouts)

    def gradient(variables, x):
        grads = jax.grad(lambda v: jnp.sum(jnp.square(stack.apply(v, x, deterministic=True))))(variables)
        return jax.lax.with_sharding_constraint(grads, layouts)

    with jax.set_mesh(mesh):
        return jax.jit(gradient).lower(variables, x).compile().as_text()


@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 1, 2)])
def test_a_scanned_model_moves_what_the_unrolled_one_moves(shape):
    mesh = mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, shape, strict=True)), jax.devices()[:8])
    texts = [gradient_text(scan, mesh) for scan in (True, False)]
    scanned, unrolled = map(Module, texts)
    loops = [i for c in scanned.computations.values() for i in c.values() if i.opcode == "while"]
    assert loops
    assert not any(i.opcode == "while" for c in unrolled.computations.values() for i in c.values())
    one, other = map(count_traffic, texts)
    assert one.unknown_loops == 0
    assert np.sum([*one.collective_bytes().values()]) > 1e5
    assert one.collective_bytes()["all-reduce"] == other.collective_bytes()["all-reduce"]
    assert sum(one.collective_bytes().values()) == pytest.approx(sum(other.collective_bytes().values()), rel=0.05)
    # The loop also copies each layer's parameters out of their stack, and gradients and activations into theirs.
    assert other.memory_bytes < one.memory_bytes < 2 * other.memory_bytes

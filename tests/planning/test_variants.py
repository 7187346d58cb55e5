"""What would help where a plan does not fit, and what may be faster where it does; nothing is compiled here."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from wamjax.nn.stack import Expert, StackConfig
from wamjax.nn.tokens import Group, TokenPlan
from wamjax.planning import variants
from wamjax.planning.program import Subject
from wamjax.planning.topology import Topology
from wamjax.planning.variants import Keys, Variant, advise, neighbours, remedies, roomiest, saved_bytes, search
from wamjax.policies.contract import Pass
from wamjax.sharding.mesh import MeshConfig
from wamjax.training.loop import TrainConfig

KEYS = Keys(remat=("policy.remat",))
POD = Topology.parse("v5e:4x4")
FIRST = Variant(POD, MeshConfig(1, 2, 8, 1, 1, 1))


def subject(changes: tuple[str, ...] = (), remat=None) -> Subject:
    """128 samples a step of 1024 tokens through four layers; `changes` may set portions."""
    stack = StackConfig(4, 8, 16, (Expert(128, 512),), remat)
    one = Pass(
        SimpleNamespace(stack=stack), TokenPlan.from_rule([Group("video", 1024)], lambda q, k: True), 1024, 1, True
    )
    portions = [int(change.partition("=")[2]) for change in changes if change.startswith("train.portions=")]
    config = TrainConfig(batch_size=128, portions=portions[-1] if portions else 1)
    return Subject(SimpleNamespace(passes=lambda mode: [one]), None, None, config, ())


def compiled(monkeypatch, needs: dict[str, float], least: float = 0.0) -> list[str]:
    """Stands in for the compiler: what variants need, in GiB by a part of their words; returns what it was asked."""
    asked: list[str] = []

    def plan(subject, topology, mesh, changes=()):
        words = Variant(topology, mesh, changes).words
        asked.append(words)
        need = next((size for part, size in needs.items() if part in words), 100.0)
        fits = need * 2**30 <= topology.chip.memory
        return SimpleNamespace(fits=fits, hbm_bytes=int(need * 2**30), step_seconds=need, changes=changes)

    monkeypatch.setattr(variants, "plan", plan)
    monkeypatch.setattr(
        variants, "at_least", lambda subject, variant: int(least * 2**30) // variant.topology.chips * 16
    )
    return asked


def test_remedies_come_one_on_top_of_the_other_and_more_chips_last(monkeypatch):
    monkeypatch.setattr(variants, "at_least", lambda subject, variant: variant.mesh.context)
    found = list(remedies(subject(), FIRST, dataclasses.replace(KEYS, moments=("train.optimizer.moments",))))
    changes = [one.changes for one in found]
    assert changes[0] == ("policy.remat=('block_in',)",)
    assert changes[1] == (*changes[0], "train.portions=8")
    assert (found[2].mesh.data, found[2].mesh.fsdp) == (1, 16)
    assert changes[3][-1] == "train.optimizer.moments=bfloat16"
    assert [one.topology.name for one in found[4:]] == ["v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16", "v5e:16x32"]
    assert "train.portions=4" in found[4].changes  # 32 chips hold four samples each
    assert not [change for change in found[6].changes if "portions" in change]  # as many chips as samples
    assert found[7].mesh == MeshConfig(1, 1, 128, 1, 2, 1)


def test_of_meshes_on_more_chips_the_one_with_most_room_is_taken(monkeypatch):
    monkeypatch.setattr(variants, "at_least", lambda subject, variant: abs(variant.mesh.context - 4))
    found = roomiest(subject(), dataclasses.replace(FIRST, topology=Topology.parse("v5e:8x8")))
    assert (found.mesh.fsdp, found.mesh.context) == (16, 4)
    assert found.changes == ("train.portions=8",)


def test_advice_compiles_until_one_fits_and_passes_over_what_cannot(monkeypatch):
    asked, said = compiled(monkeypatch, {"v5e:8x8": 12.5, "v5e:4x8": 17.0}, least=20.0), []
    lines, fitting = advise(subject, FIRST, KEYS, tries=3, say=said.append)
    assert [line for line in lines if "without anything temporary" in line] == list(lines[:3])
    assert lines[3].startswith("v5e:4x8: fsdp 32")
    assert "not enough, needs 17.0 GiB (compiled)" in lines[3]
    assert "fits, needs 12.5 of 15.8 GiB (compiled)" in lines[4]
    assert fitting.fits
    assert len(asked) == len(said) == 2


def test_advice_stops_where_no_more_may_be_compiled(monkeypatch):
    asked = compiled(monkeypatch, {})
    lines, fitting = advise(subject, FIRST, KEYS, tries=1, say=print)
    assert fitting is None
    assert len(asked) == 1
    assert "(not compiled)" in lines[-1]


def test_advice_goes_on_where_the_compiler_cannot(monkeypatch):
    compiled(monkeypatch, {"v5e:4x8": 9.0})
    working, refused = variants.plan, []

    def plan(subject, topology, mesh, changes=()):
        if topology.name == "v5e:4x4":
            refused.append(changes)
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: Lane slice updating\nand more")
        return working(subject, topology, mesh, changes)

    monkeypatch.setattr(variants, "plan", plan)
    lines, fitting = advise(subject, FIRST, KEYS, tries=4, say=print)
    assert len(refused) == 3
    assert lines[0].endswith("the compiler cannot: UNIMPLEMENTED: Lane slice updating")
    assert fitting.fits


def test_the_search_tries_what_is_saved_and_meshes_in_turns_and_sorts_by_time(monkeypatch):
    asked = compiled(monkeypatch, {"attended": 5.0, "data 4": 3.0, "block_in": 9.0})
    first = SimpleNamespace(fits=True, step_seconds=6.0)
    found = search(subject, first, FIRST, KEYS, count=4, say=lambda line: None)
    assert len(asked) == 4
    assert "policy.remat=('block_in',)" in asked[0]
    assert "data 4 x fsdp 4" in asked[1]
    assert [one.step_seconds for one in found] == sorted(one.step_seconds for one in found)
    assert found[0].step_seconds == 3.0
    assert all(
        one.mesh.data * one.mesh.fsdp * one.mesh.context * one.mesh.tensor == 16
        for one in neighbours(subject(), FIRST, KEYS)
    )


@pytest.mark.parametrize(("remat", "width"), [(("block_in",), 128), (("block_in", "mlp_hidden"), 128 + 512)])
def test_what_is_saved_is_counted(remat, width):
    (one,) = subject(remat=remat).learner.passes("train")
    assert saved_bytes(one) == 2 * 4 * 1024 * width

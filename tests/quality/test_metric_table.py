"""The table of metrics, what recipes may name of it, and the networks behind it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from pathlib import Path

import pytest
from conftest import RECIPES

from qbench.errors import InputError
from qbench.pipelines import known, specs
from qbench.quality import networks
from qbench.quality.metrics import catalogue
from qbench.quality.metrics.base import MetricSpec
from qbench.recipe.schema import Fvd, Margin, Quality
from qbench.run.plan import plan

TINY, OTHER = specs.find("tiny-cogvideox"), known.Model("any", "any/any")


def test_every_metric_is_whole_and_its_module_makes_a_meter() -> None:
    for name, spec in catalogue.METRICS.own.items():
        assert spec.name == name
        assert callable(spec.load().meter)
        assert isinstance(spec.lacking(Quality(), TINY), str)
        assert (spec.margin is not None) >= bool(spec.sees - {"content"})
    seen = set().union(*(spec.sees for spec in catalogue.METRICS.own.values()))
    assert seen == {"content", "picture", "motion"}


THIRD = MetricSpec(
    name="mean_level", unit="0-1", better="zero", range="[-1, 1]", what="level", reads="frames",
    source="here", module="test_metric_table", paired=True, margin=Margin(size=0.1),
)  # fmt: skip


def test_another_package_adds_a_metric_by_an_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    points = [
        importlib.metadata.EntryPoint("mean_level", "test_metric_table:THIRD", catalogue.GROUP),
        importlib.metadata.EntryPoint("broken", "no.such:THING", catalogue.GROUP),
        importlib.metadata.EntryPoint("misnamed", "test_metric_table:THIRD", catalogue.GROUP),
    ]
    monkeypatch.setattr(catalogue, "entry_points", lambda group: points)
    monkeypatch.syspath_prepend(str(tmp_path))  # else what was found before is not looked for anew
    assert catalogue.METRICS["mean_level"] == THIRD
    wanted = Quality(metrics=["psnr", "mean_level"])
    catalogue.check(wanted)
    assert [spec.name for spec in catalogue.chosen(wanted)] == ["psnr", "mean_level"]
    assert THIRD not in catalogue.chosen(Quality())  # asked for by name alone
    for name in ("broken", "misnamed"):
        with pytest.raises(InputError, match=name):
            catalogue.check(Quality(metrics=[name]))


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        ({"metrics": ["psnr", "clipscore"]}, "quality.metrics: .*did you mean 'clip_score'"),
        ({"margins": {"flickr": 1.0}}, "quality.margins: .*did you mean 'flicker'"),
        ({"margins": {"ssim": 1.0}}, "quality.margins: 'ssim' has no margin"),
        ({"fvd": {"network": "i3"}}, "quality.fvd.network: .*did you mean 'i3d'"),
        ({"fvd": {"network": "~nobody/i3d.pt"}}, "quality.fvd.network: .*neither a known"),
        ({"fvd": {"network": "a" * 5000}}, "quality.fvd.network: .*neither a known"),
        ({"clip": "a" * 5000}, "quality.clip: .*neither a folder nor"),
        ({"clip": "/no/such/folder"}, "quality.clip: .*neither a folder nor"),
        ({"clip": "no/model-of-that-name"}, "quality.clip: .*is no folder here"),
        ({"clip": str(known.BUNDLED / "probe")}, "quality.clip: .* has no config.json"),
    ],
)
def test_what_is_wrong_is_said_before_a_sweep(
    quality: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=said):
        networks.check(Quality.model_validate(quality), TINY)
    networks.check(Quality(), TINY)
    networks.check(Quality(), OTHER)


def test_weights_asked_for_by_name_and_a_damaged_cache_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="qbench weights fetch i3d"):
        networks.check(Quality(fvd=Fvd(network="i3d")), OTHER)
    networks.check(Quality(), OTHER)  # left out with a note
    place = tmp_path / "qbench" / "weights"
    place.mkdir(parents=True, exist_ok=True)
    pinned = networks.weights.SOURCES["lpips-alex"].sha256[:12]
    (place / f"lpips-alex-{pinned}.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"quality.lpips: .*damaged; fetch it again"):
        networks.check(Quality(), OTHER)


def test_other_weights_of_a_metric_network_are_another_digest(tmp_path: Path) -> None:
    folder = shutil.copytree(known.BUNDLED / "tiny-clip", tmp_path / "clip")
    wanted = Quality(metrics=["clip_score", "psnr"], clip=str(folder))
    before = networks.digest_of(wanted, TINY)
    assert set(networks.digests(wanted, TINY)) == {"clip"}
    path = next(folder.glob("*.safetensors"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert networks.digest_of(wanted, TINY) != before
    assert set(networks.digests(Quality(), TINY)) == {"clip", "fvd", "lpips", "probe"}


def test_a_program_is_loaded_only_where_it_is_trusted(tmp_path: Path) -> None:
    script = tmp_path / "i3d.pt"
    script.write_bytes(b"code")
    wanted = Quality(fvd=Fvd(network=str(script)))
    with pytest.raises(InputError, match="--trust-torchscript"):
        networks.check(wanted, TINY)
    trusted = networks.trusted(wanted)
    networks.check(trusted, TINY)
    script.write_bytes(b"other code")
    with pytest.raises(InputError, match=r"quality.fvd.sha256: .*another file"):
        networks.check(trusted, TINY)


def test_margins_are_in_the_metrics_unit() -> None:
    """A number alone is in the unit, flicker's a share; a spread is of the reference's videos."""
    reference = {
        "flicker": catalogue.METRICS["flicker"].sampled([0.01, 0.03, 0.02]),
        "clip_score": catalogue.METRICS["clip_score"].sampled([20.0, 24.0, 22.0]),
    }
    said: dict[str, float | Margin] = {"flicker": 0.2, "clip_score": Margin(size=0.1, of="spread")}
    found = catalogue.margins(Quality(margins=said), reference)
    assert found["flicker"] == pytest.approx(0.2 * 0.02)
    assert found["clip_score"] == pytest.approx(0.1 * 2.0)
    assert found["psnr"] == 48.13
    # As recipes and records of earlier versions say it.
    old = Quality.model_validate({"metrics": ["following"], "margins": {"psnr_db": 40.0}})
    assert old.metrics == ["adherence"]
    assert catalogue.margins(old, {})["psnr"] == 40.0


def test_the_option_writes_the_hash_of_the_program_into_every_recipe(tmp_path: Path) -> None:
    script = tmp_path / "i3d.pt"
    script.write_bytes(b"code")
    changes = {"quality.fvd.network": str(script)}
    with pytest.raises(InputError, match=r"quality.fvd.network: .*--trust-torchscript"):
        plan([RECIPES / "int8.yaml"], changes)
    planned = plan([RECIPES / "int8.yaml"], changes, trust_torchscript=True)
    assert len(planned) == 2  # the reference with it: both are measured alike
    digest = hashlib.sha256(b"code").hexdigest()
    assert {item.recipe.quality.fvd.sha256 for item in planned} == {digest}

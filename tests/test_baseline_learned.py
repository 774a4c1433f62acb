"""The trained comparators, and the configurations that train them."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, create_workflow

from monai_jsm.baselines import learned
from monai_jsm.baselines.learned import NETWORKS, register, trained_weights
from monai_jsm.data import InputError, write_phantom
from monai_jsm.networks import GlobalToLocalNet, load_weights, released_weights
from monai_jsm.registration import register as register_files

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
CONFIGS = BUNDLE / "configs"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "small"
    return Path(write_phantom(folder, training=2, validation=1, testing=1, size=(48, 52)))


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed and moving, (1, 1, 40, 33): smooth random images."""
    coarse = torch.rand(2, 1, 1, 10, 9, generator=torch.Generator().manual_seed(0))
    fixed, moving = (torch.nn.functional.interpolate(image, (40, 33), mode="bilinear") for image in coarse)
    return fixed, moving


@pytest.fixture
def weights_folder(tmp_path, monkeypatch) -> Path:
    """A place of untrained weights for ``learned`` to find, in the layout of a clone."""
    module = tmp_path / "monai_jsm" / "baselines" / "learned.py"
    monkeypatch.setattr(learned, "__file__", str(module))
    folder = tmp_path / "bundle" / "models" / "comparators" / "digits"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", NETWORKS)
def test_every_configuration_trains_the_network_that_is_registered_under_its_name(phantom, tmp_path, name):
    overlay = CONFIGS / "comparators" / f"{name}.json"
    workflow = create_workflow(
        config_file=[str(CONFIGS / "train.json"), str(overlay)],
        workflow_type="train",
        logging_file=False,
        bundle_root=str(BUNDLE),
        dataset_dir=str(phantom),
        output_dir=str(tmp_path / "run"),
        max_epochs=1,
        val_interval=1,
    )
    workflow.run()
    network = load_weights(NETWORKS[name](2), tmp_path / "run" / "model.pt")
    trained = workflow.parser.get_parsed_content("network_def")
    image = torch.cat(pair(), 1)
    with torch.no_grad():
        expected = trained.eval()(image)
        torch.testing.assert_close(network.eval()(image), expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 0
    workflow.finalize()


def test_every_configuration_has_a_network_and_every_override_an_entry_in_train():
    files = sorted((CONFIGS / "comparators").glob("*.json"))
    assert {path.stem for path in files} == set(NETWORKS)
    train = ConfigParser.load_config_file(CONFIGS / "train.json")
    for path in files:
        for name in ConfigParser.load_config_file(path):
            section, _, rest = name.partition("::")
            assert section in train, f"{path.name}: {name}"
            if rest:
                assert rest.split("::")[0] in train[section]


def test_on_cine_the_published_network_is_trained_with_the_published_gradient_term():
    makefile = (BUNDLE.parent / "Makefile").read_text()
    _, option, weight = next(line for line in makefile.splitlines() if "cine/published.pt:" in line).rsplit(maxsplit=2)
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "comparators" / "published.json"))
    for expected in (0.0, 20.0):
        assert parser.get_parsed_content("loss").similarity.gradient_weight == expected
        parser[option.removeprefix("--")] = float(weight)


def test_the_registered_field_is_that_of_the_network(weights_folder):
    torch.manual_seed(0)
    network = GlobalToLocalNet(2, saliency_input=False)
    torch.nn.init.normal_(network.body.global_net.head.weight, std=0.5)
    torch.save(network.state_dict(), weights_folder / "ours_plain.pt")
    fixed, moving = pair()
    with torch.no_grad():
        expected = network.eval()(torch.cat([moving, fixed], 1))
    ddf = register(fixed, moving, (1.0, 1.5), network="ours_plain", data="digits")
    assert not ddf.requires_grad
    assert ddf.abs().max() > 0.3
    torch.testing.assert_close(ddf, expected, rtol=0, atol=0)


def test_the_released_network_registers_as_the_package_itself_does(phantom):
    """Same network, same shrinking as ``monai_jsm.register``."""
    from monai_jsm.data import load_cases
    from monai_jsm.registration import preprocessing

    case = load_cases(phantom, "testing", 2)[0]
    prepared = preprocessing(2, affine="none")(case)
    fixed, moving = (prepared[f"{side}_image"].as_tensor()[None] for side in ("fixed", "moving"))
    spacing = torch.linalg.vector_norm(prepared["fixed_image"].affine[:2, :2], dim=0).tolist()
    ddf = register(fixed, moving, spacing, network="ours_saliency", data="cine")
    expected = register_files(case["fixed_image"], case["moving_image"], affine="none", refine=False).ddf
    torch.testing.assert_close(ddf[0], expected.as_tensor().float(), rtol=0, atol=1e-4)


def test_missing_weights_are_refused_with_the_command_that_makes_them(weights_folder):
    assert trained_weights("dirnet", "digits") is None
    with pytest.raises(InputError, match=r"dirnet: has no weights here .* trained on digits; run make comparators"):
        register(*pair(), (1.0, 1.0), network="dirnet", data="digits")


def test_volumes_and_unknown_networks_are_refused():
    volume = torch.rand(1, 1, 16, 17, 18)
    with pytest.raises(InputError, match="voxelmorph_ncc: has weights for 2D pairs only"):
        register(volume, volume, (1.0, 1.0, 2.0), network="voxelmorph_ncc", data="cine")
    with pytest.raises(ValueError, match="ours_both"):
        register(*pair(), (1.0, 1.0), network="transmorph", data="cine")


def test_ours_with_saliency_on_cine_is_the_released_network():
    assert trained_weights("ours_saliency", "cine") == released_weights(2)


@pytest.mark.parametrize("data", ["cine", "digits"])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_that_are_kept_fit_are_small_and_bring_identical_images_little_motion(name, data):
    path = trained_weights(name, data)
    if path is None:
        pytest.skip(f"{name} was not trained on {data}.")
    assert path.stat().st_size < 4e6
    fixed, _ = pair()
    lengths = register(fixed, fixed, (1.0, 1.0), network=name, data=data).norm(dim=1)
    assert lengths.mean() < 1.5
    if data == "cine" and name != "published":  # trained on smooth tissue and kept from folding
        assert lengths.mean() < 0.3
        assert lengths.max() < 1

import pytest
import torch
from monai.networks.blocks import Warp

from monai_jsm.data import InputError
from monai_jsm.geometry import compose, exponentiate, jacobian_determinant, warp
from monai_jsm.networks import DenseWarp, Exponential, GlobalToLocalNet, Stages, load_weights

SHAPES = {2: (40, 33), 3: (20, 33, 17)}
SMALL = {"global_channels": (4, 6, 6), "local_channels": (4, 6)}


def smooth_pairs(batch: int, spatial_dims: int, seed: int = 0) -> torch.Tensor:
    """Pairs ``[moving, fixed]`` of smooth random images in [0, 1], (B, 2, *S)."""
    generator = torch.Generator().manual_seed(seed)
    shape = SHAPES[spatial_dims]
    mode = "bilinear" if spatial_dims == 2 else "trilinear"
    coarse = torch.rand(batch, 2, *[n // 4 for n in shape], generator=generator)
    return torch.nn.functional.interpolate(coarse, shape, mode=mode)


def awake(network: GlobalToLocalNet, scale: float = 0.05) -> GlobalToLocalNet:
    """The network with flow heads that predict something, as a trained one does."""
    generator = torch.Generator().manual_seed(1)
    for net in (network.body.global_net, network.body.local_net):
        with torch.no_grad():
            net.head.weight.copy_(scale * torch.randn(net.head.weight.shape, generator=generator))
            net.head.bias.copy_(10 * scale * torch.randn(net.head.bias.shape, generator=generator))
    return network


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_dense_warp_is_monais_warp_forward_and_gradient_and_scripts(spatial_dims):
    generator = torch.Generator().manual_seed(0)
    ours = torch.jit.script(DenseWarp())
    for shape in (SHAPES[spatial_dims], SHAPES[spatial_dims][::-1]):  # the buffered grid follows the shape
        image = torch.rand(2, 3, *shape, generator=generator, requires_grad=True)
        ddf = (4 * torch.randn(2, spatial_dims, *shape, generator=generator)).requires_grad_()
        results = [module(image, ddf) for module in (ours, Warp(padding_mode="border"))]
        torch.testing.assert_close(*results, rtol=0, atol=1e-5)
        cotangent = torch.rand(results[0].shape, generator=generator)
        gradients = [torch.autograd.grad(result, (image, ddf), cotangent) for result in results]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_untrained_network_leaves_the_image_almost_where_it_is(spatial_dims):
    assert GlobalToLocalNet(spatial_dims)(smooth_pairs(1, spatial_dims)).abs().max() < 1e-2


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (17, 100), (33, 47)])
def test_any_size_is_taken(shape):
    network = awake(GlobalToLocalNet(2))
    ddf = network(torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(2)))
    assert ddf.shape == (1, 2, *shape)
    assert ddf.isfinite().all()


@pytest.mark.parametrize("arch", ["residual", "published"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_batch_equals_its_members_one_by_one(arch, spatial_dims):
    network = GlobalToLocalNet(spatial_dims, **SMALL, arch=arch)
    network = awake(network) if arch == "residual" else network
    image = smooth_pairs(3, spatial_dims)
    together = network(image)
    alone = torch.cat([network(member[None]) for member in image])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)  # other kernels for other batch sizes


@pytest.mark.parametrize("arch", ["residual", "published"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_scripted_network_gives_the_same_field(arch, spatial_dims):
    network = GlobalToLocalNet(spatial_dims, **SMALL, arch=arch)
    network = awake(network) if arch == "residual" else network
    image = smooth_pairs(2, spatial_dims)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image), rtol=0, atol=1e-5)


def test_every_stage_is_consistent_with_the_field():
    network = awake(GlobalToLocalNet(2, **SMALL))
    image = smooth_pairs(2, 2)
    stages = network.stages(image)
    assert isinstance(network(image, every_stage=True), Stages)
    torch.testing.assert_close(stages.ddf, network(image))
    torch.testing.assert_close(stages.warped, warp(image[:, :1], stages.coarse_ddf), rtol=0, atol=1e-5)
    seen = network.body.saliency(image[:, 1:], stages.warped)
    torch.testing.assert_close(stages.trust, seen.trust)
    torch.testing.assert_close(stages.joint_saliency, seen.joint_saliency)


def test_the_residual_is_composed_with_the_coarse_field():
    network = awake(GlobalToLocalNet(2, **SMALL))
    image = smooth_pairs(1, 2)
    residuals = []
    handle = network.body.local_net.register_forward_hook(lambda module, inputs, output: residuals.append(output))
    stages = network.stages(image)
    handle.remove()
    residual = network.body._integrate(residuals[0], [40, 33])
    torch.testing.assert_close(stages.ddf, compose(stages.coarse_ddf, residual), rtol=0, atol=1e-5)


def test_fields_do_not_fold_even_where_the_velocity_is_steep():
    network = awake(GlobalToLocalNet(2, **SMALL), scale=0.6)
    stages = network.stages(smooth_pairs(2, 2))
    assert stages.coarse_ddf.abs().max() > 3
    assert jacobian_determinant(stages.coarse_ddf).min() > 0
    assert (jacobian_determinant(stages.ddf) <= 0).float().mean() < 1e-3  # two sampled maps composed


def test_without_integration_the_velocity_is_the_displacement():
    network = awake(GlobalToLocalNet(2, **SMALL, integration_steps=0))
    velocity = torch.randn(1, 2, 10, 12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(network.body.exponential(velocity), velocity)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_without_saliency_input_the_local_net_sees_zeros_while_the_stages_hold_the_true_maps(spatial_dims):
    torch.manual_seed(0)
    network = awake(GlobalToLocalNet(spatial_dims, **SMALL))
    blind = GlobalToLocalNet(spatial_dims, **SMALL, saliency_input=False)
    blind.load_state_dict(network.state_dict())  # as many parameters, of the same names
    image = smooth_pairs(2, spatial_dims)
    seen: list[torch.Tensor] = []
    hook = blind.body.local_net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ours, theirs = network.stages(image), blind.stages(image)
    assert seen[0][:, 2:6].abs().max() == 0
    assert seen[0].shape[1] == 6 + spatial_dims
    for name in ("coarse_ddf", "warped", "joint_saliency", "trust"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=0, atol=0)
    assert theirs.trust.std() > 0
    assert (theirs.ddf - ours.ddf).abs().max() > 1e-3
    hook.remove()  # a script takes no lambda
    torch.testing.assert_close(torch.jit.script(blind)(image), theirs.ddf, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 7])
def test_the_exponential_is_that_of_geometry(steps):
    dvf = 3 * smooth_pairs(2, 2)
    torch.testing.assert_close(Exponential(steps)(dvf), exponentiate(dvf, steps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("maps", ["joint_saliency", "trust", "saliency_warped"])
@pytest.mark.parametrize("arch", ["residual", "published"])
def test_with_the_direct_path_cut_a_gradient_reaches_the_global_net_through_saliency_alone(arch, maps):
    """The backward half of the reinforcement, map by map: all else that the local net sees is detached."""
    network = GlobalToLocalNet(2, **SMALL, arch=arch)
    network = awake(network) if arch == "residual" else network
    channels = {"joint_saliency": 2, "trust": 3, "saliency_warped": 5} if arch == "residual" else {"joint_saliency": 0}
    if maps not in channels:
        pytest.skip("the published local net sees joint saliency alone")
    outputs = []

    def cut(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        parts = list(inputs[0].split(1, 1))
        return (torch.cat([part if i == channels[maps] else part.detach() for i, part in enumerate(parts)], 1),)

    network.body.local_net.register_forward_pre_hook(cut)
    network.body.local_net.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    network.stages(smooth_pairs(1, 2))
    outputs[0].square().sum().backward()
    gradients = [p.grad.abs().sum() for p in network.body.global_net.parameters() if p.grad is not None]
    assert sum(gradients) > 0


@pytest.mark.parametrize(("layers", "parameters"), [("digit", 840_976), ("cardiac", 33_321_820)])
def test_the_published_networks_have_the_published_number_of_parameters(layers, parameters):
    network = GlobalToLocalNet(2, arch="published", published_layers=layers)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fields_stay_float32_under_autocast_and_barely_move(dtype):
    network = awake(GlobalToLocalNet(2))
    image = smooth_pairs(1, 2)
    full = network(image)
    with torch.autocast("cpu", dtype=dtype):
        mixed = network(image)
    assert mixed.dtype == torch.float32
    assert full.abs().max() > 0.3
    assert (mixed - full).abs().max() < 0.05


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="'residual' or 'published'"):
        GlobalToLocalNet(2, arch="unet")
    with pytest.raises(ValueError, match="cardiac"):
        GlobalToLocalNet(2, arch="published", published_layers="brain")
    with pytest.raises(ValueError, match="2 or 3"):
        GlobalToLocalNet(4)


def test_weights_are_loaded_as_data_only(tmp_path):
    network = awake(GlobalToLocalNet(2, **SMALL))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded = load_weights(GlobalToLocalNet(2, **SMALL), tmp_path / "model.pt")
    torch.testing.assert_close(loaded(smooth_pairs(1, 2)), network(smooth_pairs(1, 2)))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None, "another"])
def test_weights_that_do_not_fit_are_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "model.pt"
    if content == "another":
        torch.save(GlobalToLocalNet(2).state_dict(), path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt: .*;"):
        load_weights(GlobalToLocalNet(2, **SMALL), path)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_cuda_gives_the_field_of_the_cpu(spatial_dims):
    network = awake(GlobalToLocalNet(spatial_dims))
    image = smooth_pairs(1, spatial_dims)
    torch.testing.assert_close(network.cuda()(image.cuda()).cpu(), network.cpu()(image), rtol=0, atol=1e-2)

import pytest
import torch

from nnunet_ext.losses import SelfUpdatingLoss
from nnunet_ext.losses.region_terms import region_terms, region_terms_reference


def problem(dims, regions, masked, batch=2, classes=3):
    size = (6, 7, 8)[:dims]
    logits = torch.randn(batch, classes, *size, dtype=torch.float64, requires_grad=True)
    if regions:
        target = torch.randint(0, 2, (batch, classes, *size))
    else:
        target = torch.randint(0, classes, (batch, 1, *size))
    valid = torch.rand(batch, 1, *size) > 0.3 if masked else None
    return logits, target, valid


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_terms_equal_their_reference_with_gradients(dims, regions, masked, chunk, monkeypatch, assert_close):
    monkeypatch.setattr("nnunet_ext.losses.region_terms._CHUNK_ELEMENTS", chunk)
    logits, target, valid = problem(dims, regions, masked)
    results = [f(logits, target, valid, regions) for f in (region_terms, region_terms_reference)]
    for fast, plain in zip(*results, strict=True):
        assert_close(fast, plain, 1e-12)
        assert_close(*(torch.autograd.grad(t, logits, retain_graph=True)[0] for t in (fast, plain)), 1e-10)


def test_a_single_class_slice_by_hand():
    """A 3 x 3 square in a 5 x 5 image: 9 voxels, 8 on the boundary, alpha = 2 (1 - 8/9) - 1 = -7/9."""
    target = torch.zeros(1, 1, 5, 5, dtype=torch.long)
    target[0, 0, 1:4, 1:4] = 1
    logits = torch.zeros(1, 2, 5, 5)  # p = 1/2 everywhere
    terms = region_terms(logits, target)
    foreground = (25 / 4 + 9 - 9) / (25 / 4 + 9 - (1 - 7 / 9) * 4.5)
    # Background: 16 voxels at the image's edge, all on the boundary, alpha = -1.
    background = (25 / 4 + 16 - 16) / (25 / 4 + 16)
    assert terms.boundary.item() == pytest.approx((foreground + background) / 2, rel=1e-4)
    assert terms.cross_entropy.item() == pytest.approx(0.6931472, rel=1e-6)
    assert terms.dice.item() == pytest.approx(1 - (9 / (12.5 + 9) + 16 / (12.5 + 16)) / 2, rel=1e-4)


def test_a_class_absent_from_a_slice_gives_one_without_gradient():
    logits = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(1, 1, 3, 4, 4, dtype=torch.long)
    both = region_terms(logits, target).boundary
    # One region that covers everything, with the same probabilities: the contribution of class 0.
    first = region_terms((logits[:, :1] - logits[:, 1:]), torch.ones_like(target), regions=True).boundary
    assert both.item() == pytest.approx((first.item() + 1) / 2, rel=1e-12)
    half, whole = (torch.autograd.grad(t, logits)[0] for t in (first / 2, both))
    torch.testing.assert_close(whole, half)


def test_three_calls_agree_with_the_authors(golden, assert_close):
    file = golden("sasan_sm_loss")
    loss = SelfUpdatingLoss()
    for step in range(file.meta["steps"]):
        logits = file[f"logits{step}"].requires_grad_()
        total = loss(logits, file[f"target{step}"])
        total.backward()
        assert_close(total, file[f"total_loss{step}"], 1e-5)
        for term, name in zip(loss.last_terms, ("dice", "ce", "boundary"), strict=True):
            assert_close(term, file[f"{name}_loss{step}"], 1e-4)
        assert_close(loss.raw_weights, file[f"raw_lambdas{step}"], 1e-6)
        names = ("new_lambda_dice", "new_lambda_ce", "new_lambda_boundary")
        assert_close(loss.weights, torch.stack([file[f"{name}{step}"] for name in names]), 1e-6)
        assert_close(logits.grad, file[f"grad{step}"], 2e-4)


def updated(loss: SelfUpdatingLoss, dice: float, ce: float, boundary: float) -> list[float]:
    """Raw weights after an update from these three terms."""
    loss._update(torch.tensor([dice, ce, boundary]))
    return loss.raw_weights.tolist()


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ((0.50, 0.15, 0.10), (1.0015, 1.001, 1.0)),  # Dice largest, CE > Boundary
        ((0.50, 0.10, 0.15), (1.0015, 1.0, 1.0005)),  # Dice largest, Boundary > CE
        ((0.10, 0.15, 0.05), (1.001, 1.0015, 1.0)),  # CE largest, Dice > Boundary
        ((0.05, 0.15, 0.10), (1.0, 1.0015, 1.0005)),  # CE largest, Boundary > Dice
        ((0.05, 0.15, 0.60), (1.0, 1.001, 1.0015)),  # Boundary largest, CE > Dice
        ((0.55, 0.15, 0.60), (1.0005, 1.0, 1.0015)),  # Boundary largest, Dice > CE
        ((0.61, 0.10, 0.10), (1.0, 1.0, 1.0)),  # gate closed by Dice
        ((0.50, 0.21, 0.10), (1.0, 1.0, 1.0)),  # by cross-entropy
        ((0.50, 0.10, 0.71), (1.0, 1.0, 1.0)),  # by the boundary
    ],
)
def test_every_branch_of_the_update(terms, expected):
    assert updated(SelfUpdatingLoss(), *terms) == pytest.approx(expected, abs=1e-7)


def test_thresholds_are_arguments():
    loss = SelfUpdatingLoss(dice_threshold=0.9, ce_threshold=0.9, boundary_threshold=0.9)
    assert updated(loss, 0.8, 0.1, 0.2) == pytest.approx((1.0015, 1.0, 1.0005), abs=1e-7)


def easy_problem():
    """A prediction good enough that the update's gate is open."""
    target = torch.zeros(1, 1, 2, 12, 12, dtype=torch.long)
    target[..., 3:9, 3:9] = 1
    logits = 4.0 * torch.cat([target == 0, target == 1], 1)
    return logits.requires_grad_(), target


def test_only_training_steps_update():
    logits, target = easy_problem()
    loss = SelfUpdatingLoss()
    loss.eval()
    loss(logits, target)
    loss.train()
    with torch.no_grad():
        loss(logits, target)
    assert loss.raw_weights.tolist() == [1, 1, 1]
    loss(logits, target)
    assert loss.raw_weights.tolist() != [1, 1, 1]


def test_state_dict_restores_the_weights_and_the_optimiser_sees_none():
    logits, target = easy_problem()
    loss, fresh = SelfUpdatingLoss(), SelfUpdatingLoss()
    for _ in range(3):
        loss(logits, target)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh.raw_weights, loss.raw_weights)
    assert list(loss.parameters()) == []


def test_deep_supervision_updates_once_and_shares_the_weights():
    logits, target = easy_problem()
    lower_logits, lower_target = torch.randn(1, 2, 2, 6, 6), torch.randint(0, 2, (1, 1, 2, 6, 6))
    loss, single = SelfUpdatingLoss(deep_supervision_weights=[0.75, 0.25]), SelfUpdatingLoss()
    total = loss([logits, lower_logits], [target, lower_target])
    full = single(logits, target)
    assert torch.equal(loss.raw_weights, single.raw_weights)
    lower = sum(w * t for w, t in zip(single.weights, region_terms(lower_logits, lower_target), strict=True))
    assert total.item() == pytest.approx((0.75 * full + 0.25 * lower).item(), rel=1e-6)


def test_default_output_weights_are_nnunets():
    assert SelfUpdatingLoss()._output_weights(3) == pytest.approx([2 / 3, 1 / 3, 0])
    assert SelfUpdatingLoss()._output_weights(1) == [1]


@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_count_in_no_term(regions):
    logits, target, valid = problem(3, regions, masked=True)
    loss = SelfUpdatingLoss(regions=regions, ignore_label=7)
    if regions:
        marked = torch.cat([target, (~valid).long()], 1)
    else:
        marked = target.where(valid, 7)
    total = loss(logits, marked)
    (gradient,) = torch.autograd.grad(total, logits)
    assert (gradient * ~valid == 0).all()
    changed = (logits + 100 * torch.randn_like(logits) * ~valid).detach()
    assert SelfUpdatingLoss(regions=regions, ignore_label=7)(changed, marked).item() == pytest.approx(total.item())


def test_everything_ignored_is_finite():
    logits = torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    total = SelfUpdatingLoss(ignore_label=2)(logits, torch.full((1, 1, 3, 4, 4), 2))
    total.backward()
    assert total.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_computed_in_float32(dtype):
    logits, target, _ = problem(3, False, False)
    logits = (100 * logits).to(dtype).detach().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        total = SelfUpdatingLoss()(logits, target)
    total.backward()
    assert total.dtype == torch.float32
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_lengths_must_agree():
    logits, target = easy_problem()
    with pytest.raises(ValueError, match="2 outputs but 1 targets"):
        SelfUpdatingLoss()([logits, logits], [target])
    with pytest.raises(ValueError, match="`deep_supervision_weights` has 3 entries for 2 outputs"):
        SelfUpdatingLoss(deep_supervision_weights=[1, 0, 0])([logits, logits], [target, target])


@pytest.mark.parametrize("regions", [False, True])
def test_transforms_of_torch_func_see_the_gradient(regions, assert_close):
    logits = torch.randn(2, 3, 4, 6, 6, dtype=torch.float64)
    target = torch.randint(0, 2 if regions else 3, (2, 3 if regions else 1, 4, 6, 6))

    def total(values):
        return sum(region_terms(values, target, regions=regions))

    leaf = logits.clone().requires_grad_()
    total(leaf).backward()
    assert_close(torch.func.grad(total)(logits), leaf.grad, 1e-10)


def test_a_second_derivative_is_refused_by_name():
    """Also where the incoming gradient is a constant, so that only the logits need one."""
    logits = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 2, (1, 1, 3, 4, 4))
    (gradient,) = torch.autograd.grad(region_terms(logits, target).cross_entropy, logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"nnunet_ext::region_sums has no second derivative"):
        gradient.square().sum().backward()

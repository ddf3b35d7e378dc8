"""The draw of supports: patients apart, all draws over the same queries, and errors before anything starts."""

from types import SimpleNamespace

import pytest

from nnunet_ext.crossval.fewshot import encoder
from nnunet_ext.crossval.fewshot.protocol import Protocol
from nnunet_ext.crossval.fewshot.supports import draw_fold

CLASSES = {"rod": (1,), "ball": (2,)}
PATIENTS = ("p0", "p1", "p2", "p3")
CASES = [f"{patient}_{frame}" for patient in PATIENTS for frame in ("ED", "ES")]
GROUPS = {case: case[:2] for case in [*CASES, "q0_ED", "q1_ED", "q2_ED"]}
SPLIT = {"train": ["q0_ED", "q1_ED", "q2_ED"], "val": CASES}


def shown(**of_cases):
    """Both classes in every case, unless said otherwise."""
    return {case: frozenset(CLASSES) for case in GROUPS} | {case: frozenset(found) for case, found in of_cases.items()}


def only_rod(cases):
    return {case: ["rod"] for case in cases}


def draw(of_cases=None, **options):
    return draw_fold(2, SPLIT, of_cases or shown(), GROUPS, Protocol(1, CLASSES, **options))


@pytest.mark.parametrize("supports", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_supports_are_patients_of_the_fold_that_are_not_segmented(supports, seed):
    found = draw(supports=supports, seed=seed)
    assert len(found.supports) == supports
    patients = {GROUPS[case] for support in found.supports for case in support.values()}
    assert len(patients) == supports  # one scan shows both classes, and draws take different patients
    assert all(support["rod"] == support["ball"] for support in found.supports)
    assert list(found.queries) == [case for case in CASES if GROUPS[case] not in patients]
    assert found == draw(supports=supports, seed=seed)


def test_the_seed_and_the_fold_change_the_draw():
    drawn = {draw(seed=seed).supports[0]["rod"] for seed in range(20)}
    drawn_in_folds = {
        draw_fold(fold, SPLIT, shown(), GROUPS, Protocol(1, CLASSES)).supports[0]["rod"] for fold in range(20)
    }
    assert min(len(drawn), len(drawn_in_folds)) > 4


def test_training_patients_leave_every_case_to_segment():
    found = draw(supports=3, support_from="training")
    assert found.queries == tuple(CASES)
    assert {support["rod"] for support in found.supports} == set(SPLIT["train"])


@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_the_support_lacks_has_another_one(seed):
    """The ball is in one scan only, of p1, and the rod is not in it."""
    of_cases = only_rod(CASES) | {"p1_ED": ["ball"], "p3_ES": ["ball", "rod"]}
    found = draw(shown(**of_cases), seed=seed)
    (support,) = found.supports
    assert support["ball"] in ("p1_ED", "p3_ES")
    assert "rod" in of_cases[support["rod"]]
    if support["ball"] == "p3_ES":
        assert support["rod"] == "p3_ES"
    assert not {GROUPS[case] for case in support.values()} & {GROUPS[case] for case in found.queries}


@pytest.mark.parametrize(
    ("of_cases", "options", "message"),
    [
        (
            only_rod(CASES),
            {},
            "no patient of fold 2 has the class 'ball': leave it out with --test-classes",
        ),
        (
            only_rod(SPLIT["train"]),
            {"support_from": "training"},
            "no patient of the training cases of fold 2 has the class 'ball'",
        ),
        (
            only_rod(CASES),
            {"support_from": "training"},
            "no patient of fold 2 has the class 'ball', so that there is nothing to segment: leave it out",
        ),
        (
            only_rod(CASES[2:]),
            {},
            r"no patient of fold 2 besides its 1 support\(s\) has the class 'ball', .* or take --support-from training",
        ),
        (
            only_rod(CASES[2:]),
            {"supports": 2},
            r"fold 2 has 1 patient\(s\) with the class 'ball', too few for support 2 of 2: give fewer --s",
        ),
        ({}, {"supports": 4}, "no patient of fold 2 besides its 4 support"),
        (
            {},
            {"supports": 4, "support_from": "training"},
            r"the training cases of fold 2 has 3 patient\(s\) with the class '\w+', too few for support 4 of 4",
        ),
    ],
)
def test_too_few_patients_are_an_error(of_cases, options, message):
    with pytest.raises(ValueError, match=message):
        draw(shown(**of_cases), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setting": 3}, "--setting 3 must be 1 or 2"),
        ({"supports": 0}, "--supports 0 must be at least 1"),
        ({"parts": 0}, "--parts 0 must be at least 1"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
        ({"support_from": "test"}, "--support-from 'test' is unknown; known: fold, training"),
        ({"encoder_weights": "nowhere.pth"}, "--encoder-weights: no such file: nowhere.pth"),
        ({"classes": {str(k): (k,) for k in range(1, 14)}}, "13 test classes; from 1 to 12 can be segmented at once"),
    ],
)
def test_settings_that_cannot_work_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**{"setting": 1, "classes": CLASSES} | change).check()


def test_an_encoder_or_setting_2_has_plans_of_its_own(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    protocols = [
        Protocol(1, CLASSES),
        Protocol(2, CLASSES),
        Protocol(2, {"rod": (1,)}),
        Protocol(1, CLASSES, encoder="resnet18"),
        Protocol(2, CLASSES, encoder="resnet18"),
        Protocol(1, CLASSES, encoder="resnet18", encoder_weights=str(weights)),
        Protocol(1, CLASSES, encoder_frozen="1"),
    ]
    names = [protocol.plans_name("nnUNetPlans") for protocol in protocols]
    assert names[0] == "nnUNetPlans"
    assert len(set(names)) == len(names)
    assert names[1].startswith("nnUNetPlans_without-rod-ball_")
    assert not any("__" in name for name in names)
    weights.write_bytes(b"others")
    assert protocols[-2].plans_name("nnUNetPlans") != names[-2]
    assert protocols[-2].environment() == {
        "NNUNET_EXT_ENCODER": "resnet18",
        "NNUNET_EXT_ENCODER_WEIGHTS": str(weights),
    }
    assert protocols[1].plan_entries() == {"left_out_classes": ["rod", "ball"]}


def test_options_choose_the_encoder_before_the_environment_does(monkeypatch):
    given = {"NNUNET_EXT_ENCODER": "resnet18", "NNUNET_EXT_ENCODER_FROZEN": "1", "OTHER": "x"}
    monkeypatch.setattr(encoder, "find_trainer", lambda name: SimpleNamespace(default_choice=None))
    found = encoder.encoder_environment("Choosable", "resnet50", None, given)
    assert found == {"NNUNET_EXT_ENCODER": "resnet50", "NNUNET_EXT_ENCODER_FROZEN": "1"}
    monkeypatch.setattr(encoder, "find_trainer", lambda name: SimpleNamespace())
    assert encoder.encoder_environment("Fixed", None, None, given) == {}
    with pytest.raises(ValueError, match="--encoder-weights: the encoder of Fixed cannot be chosen"):
        encoder.encoder_environment("Fixed", None, "timm", given)

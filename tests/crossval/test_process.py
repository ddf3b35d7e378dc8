"""A node's command as a real process of nnU-Net."""

import time

from nnunet_ext.crossval.completion import json_state
from nnunet_ext.crossval.graph import PREPARE, Node
from nnunet_ext.crossval.process import Child


def test_nnunets_planning_runs_with_augmentation_in_the_trainings_process(nnunet, tmp_path):
    """With nnUNet_n_proc_DA=0 nnU-Net's planning alone would end in an error of torch.set_num_threads."""
    file = nnunet.preprocessed / "OneProcessPlans.json"
    command = ["nnUNetv2_plan_experiment", "-d", "4", "-overwrite_plans_name", "OneProcessPlans"]
    node = Node("plan", (), lambda: json_state(file), lambda: command, PREPARE)
    environment = nnunet.environment | {"nnUNet_n_proc_DA": "0"}
    child = Child(node, environment, tmp_path / "log.txt")
    deadline = time.monotonic() + 300
    while not child.ended():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert child.failure() is None
    assert file.is_file()
    file.unlink()

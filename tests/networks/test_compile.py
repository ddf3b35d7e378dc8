"""torch.compile, which nnU-Net uses on CUDA by default: networks equal eager ones and are compiled no more often than
their use changes.
"""

import warnings

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from nnunet_ext.check.subject import without_dropout
from tests.helpers.small_networks import EVERY, build, images_for


def loss_of(outputs):
    return sum(o.square().mean() for o in outputs)


@pytest.fixture
def compiler():
    """Compiles a network to one graph with a backend; the list records every compilation."""
    compilations = []

    def compile_network(network, backend):
        chosen = lookup_backend(backend)

        def counted(graph, inputs):
            compilations.append(graph)
            return chosen(graph, inputs)

        without_dropout(network)  # each run would drop different channels
        torch._dynamo.reset()
        return torch.compile(network, fullgraph=True, backend=counted), compilations

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own tracer and generator
        yield compile_network
    torch._dynamo.reset()


def results(network, run, x):
    network.zero_grad()
    outputs = run(x)
    loss_of(outputs).backward()
    return [*outputs, torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])]


def check(network, backend, compiler, assert_close, within_epochs=True):
    """Steps of training, nnU-Net's validation within an epoch, its prediction of scans, and training again."""
    run, compilations = compiler(network, backend)
    optimiser = torch.optim.SGD(network.parameters(), 1e-3)
    for _ in range(2):
        x = images_for(network, 2)
        for actual, expected in zip(*(results(network, f, x) for f in (run, network)), strict=True):
            assert_close(actual, expected, 1e-4)
        optimiser.step()
        assert len(compilations) == 1
    expected = 1
    network.eval()
    if within_epochs:
        expected += 1
        for _ in range(2):
            with torch.no_grad():
                assert_close(run(x)[0], network(x)[0], 1e-4)
        assert len(compilations) == expected
    network.decoder.deep_supervision = False
    expected += 1
    for _ in range(2):
        with torch.no_grad():
            assert_close(run(x[:1]), network(x[:1]), 1e-4)
    assert len(compilations) <= expected
    network.decoder.deep_supervision = True
    results(network.train(), run, x)
    assert len(compilations) <= expected


def test_the_compiler_sees_no_complex_numbers_in_sasan(compiler):
    """Inductor makes no code for them, and no code for what is between them."""
    network = build("sasan", "2d")
    run, compilations = compiler(network, "aot_eager")
    run(images_for(network, 2))
    values = [node.meta.get("example_value") for graph in compilations for node in graph.graph.nodes]
    found = [value.dtype for value in values if isinstance(value, torch.Tensor)]
    assert len(found) > 50
    assert not any(dtype.is_complex for dtype in found)


QUICK = ("sasan", "salstm", "faf_net")  # others take a minute and more


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_compiles_to_one_graph_for_training_and_one_for_prediction(name, compiler, assert_close):
    """Without a code generator, which would take minutes."""
    network = build(name, "2d", input_channels=2, deep_supervision=True, n_stages=3)
    check(network, "aot_eager", compiler, assert_close, within_epochs=False)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", EVERY)
def test_compiled_with_a_code_generator_it_equals_eager(name, compiler, assert_close):
    """PyTorch's own generator, for this CPU."""
    check(build(name, "2d", input_channels=2, deep_supervision=True, n_stages=3), "inductor", compiler, assert_close)


def test_faf_net_without_a_support_compiles_and_predicts_nothing(compiler):
    network = build("faf_net", "2d")
    network.decoder.seg_layers.prototype_valid.fill_(False)
    run, _ = compiler(network, "aot_eager")
    assert run(images_for(network)).isnan().all()


@pytest.mark.slow
def test_an_episode_of_faf_net_compiles_to_one_graph(compiler, assert_close):
    network = build("faf_net", "2d", n_stages=3)
    network.slices_per_chunk = 3
    run, compilations = compiler(network, "aot_eager")
    for _ in range(2):
        support, queries = images_for(network, 2)[None], images_for(network, 4)[None]
        masks = [(x > 0).float().expand(-1, -1, 2, -1, -1) for x in (support, queries)]
        arguments = (queries, support, *masks)
        logits, gradients = [], []
        for episode in (network(*arguments), run(*arguments)):
            logits.append(episode.logits)
            network.zero_grad()
            sum(episode[2:]).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert_close(*logits, 1e-4)
        assert_close(*gradients, 1e-3)
        assert len(compilations) == 1

"""Networks as users have them."""

import copy
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bench
from bench.engine.build import build
from bench.engine.plan import plan
from bench.engine.preflight import probe
from bench.engine.setup import _own
from bench.models.classifier import Classifier
from bench.models.foreign import as_logits, copied
from bench.noise import Noise, isolated
from tests import toy_model
from tests.helpers import toy_request
from tests.models.helpers import load, noise
from tests.toys import message

K, SHAPE = 10, (1, 28, 28)
IMAGES = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(3))
Output = namedtuple("Output", ["loss", "logits"])


def linear(out=K, pixels=784):
    with isolated(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, out))


class Recurrent(nn.Module):
    """A two-layer LSTM over the rows of an image."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.LSTM(28, 64, 2, batch_first=True), nn.Linear(64, K)

    def forward(self, images):
        return self.head(self.inner(images[:, 0])[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(28, 4, 64, batch_first=True)
        self.inner, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(28, K)

    def forward(self, images):
        return self.head(self.inner(images[:, 0]).mean(1))


class Keywords(nn.Module):
    """Attention called by keyword alone."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.MultiheadAttention(28, 4, batch_first=True), nn.Linear(28, K)

    def forward(self, images):
        rows = images[:, 0]
        return self.head(self.inner(query=rows, key=rows, value=rows)[0].mean(1))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(2.0))

    def forward(self):
        return self.value


class Places(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(28, 28))

    def forward(self, count):
        return self.table[:count]


class NoArgument(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.scale, self.places = linear(), Scale(), Places()

    def forward(self, images):
        return self.inner(images + self.places(28)) * self.scale()


class Fusion(nn.Module):
    """Weights over a list of outputs."""

    def __init__(self):
        super().__init__()
        self.share = nn.Parameter(torch.ones(2))

    def forward(self, outputs):
        return self.share[0] * outputs[0] + self.share[1] * outputs[1]


class Fused(nn.Module):
    """A list given to a layer, and one row of an embedding that all images share."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.fusion = linear(), linear(), Fusion()
        self.shared = nn.Embedding(1, K)

    def forward(self, images):
        fused = self.fusion([self.one(images), self.two(images)])
        return fused + self.shared(torch.zeros(1, dtype=torch.long))


class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, images):
        return self.inner(images).squeeze()


class SqueezedImages(Recurrent):
    """Loses the batch of one before the LSTM, which then takes the image for one of its rows."""

    def forward(self, images):
        return self.head(self.inner(images.squeeze())[0][..., -1, :])


class Named(nn.Module):
    """Answers as models of Hugging Face do."""

    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = linear(), kind

    def forward(self, pixel_values, labels=None):
        return self.kind(self.inner(pixel_values))


class Colours(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images.expand(-1, 3, -1, -1))


def torchvision_vit():
    vision = pytest.importorskip("torchvision").models
    network = vision.VisionTransformer(28, 7, 2, 2, 32, 64, num_classes=K)
    nn.init.normal_(network.heads.head.weight, std=0.1)
    return Colours(network)


def timm_vit():
    timm = pytest.importorskip("timm")
    return timm.models.VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=K, embed_dim=32, depth=2, num_heads=2
    )


def quantised():
    inner = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, K)).eval()
    return torch.ao.quantization.quantize_dynamic(inner, {nn.Linear}, dtype=torch.qint8)


def exported():
    example = (torch.ones(2, *SHAPE),)
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(linear().eval(), example, dynamic_shapes=shapes).module()


def old_weight_norm():
    """A network that copy.deepcopy refuses."""
    network = nn.Sequential(nn.Flatten(), nn.utils.weight_norm(nn.Linear(784, K)))
    network(torch.ones(1, *SHAPE))
    with pytest.raises(RuntimeError):
        copy.deepcopy(network)
    return network


NETWORKS = {
    "lstm": Recurrent,
    "transformer": Encoder,
    "torchvision ViT": torchvision_vit,
    "timm ViT": timm_vit,
    "keywords": Keywords,
    "no argument": NoArgument,
    "fusion": Fused,
    "squeezed": Squeezed,
    "squeezed images": SqueezedImages,
    "output object": lambda: Named(lambda logits: Output(None, logits)),
    "output mapping": lambda: Named(lambda logits: {"logits": logits}),
    "output tuple": lambda: Named(lambda logits: (logits,)),
    "maps of one pixel": lambda: nn.Conv2d(1, K, 28),
    "DataParallel": lambda: nn.DataParallel(linear()),
    "torch.compile": lambda: torch.compile(linear()),
    "half": lambda: linear().half(),
    "bfloat16": lambda: Encoder().bfloat16(),
    "double": lambda: linear().double(),
    "traced": lambda: torch.jit.trace(linear().eval(), torch.ones(2, *SHAPE)),
    "scripted": lambda: torch.jit.script(linear().eval()),
    "scripted inside": lambda: nn.Sequential(torch.jit.script(linear())),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(linear().eval())),
    "exported": exported,
    "exported inside": lambda: nn.Sequential(nn.Identity(), exported()),
    "quantised": quantised,
    "not to be copied": old_weight_norm,
}


def make(name, seed=0):
    with isolated(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return NETWORKS[name]()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_runs_from_end_to_end(name):
    report = bench.evaluate(
        make(name), n=17, attacks="pgd:steps=2", device="cpu", batch_size=16, defenses="jpeg"
    )
    assert report.failures == []
    assert [f.name for r in report.records for f in r.findings if f.verdict == "fail"] == []
    assert {record.inference.passes for record in report.records} == {1}


@pytest.mark.parametrize("name", NETWORKS)
def test_its_logits_are_its_own(name):
    """Alone and in a batch, float32, with the network's own numbers."""
    network, classifier = make(name), _own(make(name), K)
    probe(classifier, IMAGES)
    logits = classifier(IMAGES, noise(4))
    images = IMAGES.to(classifier.takes or torch.float32)
    if name == "quantised":
        own = torch.cat([network(image[None]) for image in images])
    else:
        own = as_logits(Classifier(network, K).eval().network(images), 4, K)
    assert logits.dtype == torch.float32 and logits.shape == (4, K)
    assert torch.allclose(logits, own.float(), rtol=1e-5, atol=1e-6)
    coarse = name in ("half", "bfloat16")
    alone = classifier(IMAGES[:1], noise(1))
    assert torch.allclose(alone, logits[:1], rtol=0, atol=1e-2 if coarse else 1e-5)


@pytest.mark.parametrize("one", [(4, 1), (4,)])
def test_one_logit_is_a_binary_classifier(one):
    """softmax([0, z]) is the sigmoid of z."""
    z = torch.tensor([-3.0, 0.5, 2.0, 40.0])
    logits = as_logits(z.reshape(one), 4, 2)
    assert torch.equal(logits, torch.stack([torch.zeros(4), z], 1))
    assert torch.allclose(logits.softmax(1)[:, 1], torch.sigmoid(z))
    assert as_logits(z.reshape(one), 4, 3).shape == one


def test_one_logit_from_end_to_end(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.random((40, 6, 6), dtype=np.float32)
    labels = (images.mean((1, 2)) > np.median(images.mean((1, 2)))).astype(np.int64)
    np.savez(tmp_path / "two.npz", x_test=images, y_test=labels)
    network = linear(1, 36)
    with torch.no_grad():
        network[1].weight.fill_(1.0)
        network[1].bias.fill_(-36 * float(np.median(images.mean((1, 2)))))
    asked = {"dataset": f"npz:{tmp_path / 'two.npz'}", "norm": "linf", "device": "cpu"}
    for model in (network, nn.Sequential(network, nn.Flatten(0))):
        (record,) = bench.evaluate(model, **asked, eps=0.01, attacks="pgd").records
        assert record.metrics.clean.mean.value == 1
        # A linear network's exact answer: the mean moves by eps.
        gap = np.abs(images.mean((1, 2)) - np.median(images.mean((1, 2))))
        assert record.metrics.adversarial.mean.value == pytest.approx(float((gap > 0.01).mean()))
    text = message(lambda: bench.evaluate(linear(1), n=4, device="cpu"))
    assert "(4, 1) where logits (4, 10)" in text


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: linear(12), ["(4, 12) where logits (4, 10)", "classes=N"]),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, K)), ["shape (1, 28, 28)", "784"]),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, K)).half(), ["784"]),
        (lambda: Named(lambda logits: (logits, logits)), ["tuple of 2 values"]),
        (lambda: Named(lambda logits: None), ["NoneType"]),
        (
            lambda: torch.export.export(linear().eval(), (torch.ones(2, *SHAPE),)).module(),
            ["does not run", "== 2"],
        ),
    ],
)
def test_what_cannot_run_is_said_in_one_line_before_anything_is_computed(
    network, words, monkeypatch
):
    monkeypatch.setattr("bench.api.run_in_processes", None)
    with isolated(0):
        made = network()
    text = message(lambda: bench.evaluate(made, n=8, device="cpu"))
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize("name", ["scripted", "traced", "frozen", "exported", "timm ViT"])
def test_copies_can_be_trained_and_leave_the_original(name):
    classifier = _own(make(name), K)
    before = classifier(IMAGES, noise(4)).detach()
    # A student of a teacher is a copy of a copy.
    copy_ = copy.deepcopy(copied(classifier))
    parameters = list(copy_.parameters())
    assert all(p.is_leaf for p in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 1
    if parameters:
        assert not torch.allclose(copy_(IMAGES, noise(4)), before)
    assert torch.equal(classifier(IMAGES, noise(4)), before)


def plain_pgd(network, images, labels, eps, step, steps):
    """From the image, sign steps on the cross-entropy; which images no step breaks."""
    points, stands = images.clone(), torch.ones(len(images), dtype=torch.bool)
    for count in range(steps + 1):
        leaf = points.clone().requires_grad_(True)
        logits = network(leaf)
        stands &= logits.argmax(1) == labels
        if count < steps:
            loss = F.cross_entropy(logits, labels, reduction="sum")
            slope = torch.autograd.grad(loss, leaf)[0].sign()
            points = (points + step * slope).clamp(images - eps, images + eps).clamp(0, 1)
    return stands


@pytest.mark.parametrize("name", ["lstm", "transformer", "torchvision ViT", "timm ViT"])
def test_pgd_has_the_numbers_of_a_plain_loop(name):
    network = make(name).eval()
    data = bench.load_dataset("mnist5k")
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    train = data.train().first(512)
    for _ in range(15):
        for at in range(0, 512, 64):
            optimiser.zero_grad()
            logits = network(train.pixels()[at : at + 64])
            F.cross_entropy(logits, train.labels[at : at + 64]).backward()
            optimiser.step()
    images = data.test().first(60)
    pixels, labels = images.pixels(), images.labels
    attack = "pgd:steps=5,step=0.004,random_start=false"
    (record,) = bench.evaluate(network, n=60, attacks=attack, eps=0.015, device="cpu").records
    assert [f.name for f in record.findings if f.verdict == "fail"] == []
    with torch.no_grad():
        clean = float((network(pixels).argmax(1) == labels).float().mean())
    robust = float(plain_pgd(network, pixels, labels, 0.015, 0.004, 5).float().mean())
    assert record.metrics.clean.mean.value == pytest.approx(clean)
    assert record.metrics.adversarial.mean.value == pytest.approx(robust)
    assert 0 < robust < clean, (clean, robust)


@pytest.mark.parametrize("kind", [torch.jit.script, lambda m: m.double(), nn.DataParallel])
def test_a_real_network_keeps_its_numbers(real_data, kind):
    """As TorchScript, in double precision, in a wrapper."""
    plain = load(str(real_data / "models" / "mnist_wk17a.safetensors"))
    network = nn.Sequential(*plain.network)
    data = {"dataset": f"npz:{real_data / 'data' / 'mnist.npz'}", "n": 300, "device": "cpu"}
    with isolated(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = kind(copy.deepcopy(network))
    attack = "pgd:steps=10,random_start=false"
    one, two = (
        bench.evaluate(model, **data, norm="linf", eps=0.1, attacks=attack).records[0].metrics
        for model in (network, other)
    )
    assert one.clean.mean.value == two.clean.mean.value
    assert one.adversarial.mean.value == pytest.approx(two.adversarial.mean.value, abs=1 / 300)


def test_a_stochastic_squeezing_network_repeats():
    network = nn.Sequential(nn.Dropout(0.5), Squeezed()).eval()
    network[0].train()
    classifier = Classifier(network, K)
    probe(classifier, IMAGES)
    assert classifier.stochastic and classifier.doubles_one
    draws = Noise.of(0, "eval", range(4))
    assert torch.equal(classifier(IMAGES, draws), classifier(IMAGES, draws))


class Unfit(nn.Module):
    """Cannot be copied."""

    def __init__(self):
        super().__init__()
        self.inner = toy_model.make_model()

    def __deepcopy__(self, memo):
        raise TypeError("holds a lock")

    def forward(self, images):
        return self.inner(images)


def test_a_network_that_cannot_be_copied_is_shared_and_kept():
    """A defense that leaves it alone runs; one that trains it is refused and spoils no other."""
    network = Unfit().eval()
    before = copy.deepcopy(network.inner.state_dict())
    for defense in ("toy-jitter", "undefended"):
        built = build(
            plan(toy_request(defenses=(defense,), n=4), model=network)[-1], torch.device("cpu")
        )
        assert any(part is network for part in built.modules())
    for defense in ("toy-vandal", "toy-trainer"):
        evaluation = plan(toy_request(defenses=(defense,), n=4), model=network)[-1]
        text = message(lambda e=evaluation: build(e, torch.device("cpu")))
        assert "changes the classifier" in text and "holds a lock" in text
        after = network.inner.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())

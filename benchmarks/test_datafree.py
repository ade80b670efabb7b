"""DataFreeShield against a transcription of its released algorithm, on the same network, batch size
and threads, in one run.

    OMP_NUM_THREADS=1 pytest benchmarks/test_datafree.py -s --benchmark-group-by=group
    --benchmark-timer=time.process_time

The table's parentheses are the ratios to the faster one of a group. Both run a ResNet-20 for CIFAR
with fresh weights: its answers do not matter to its time. The released training copies the student
for each batch, asks it for S(x) in every step of the attack, asks the teacher in every epoch, and
runs the clean images through the student twice in the loss; the released synthesis differentiates
to the weights, too, and lets autograd find the gradient of the BatchNorm statistics.
"""

import copy
import random
import sys
from collections import Counter

import pytest
import torch
from bench_defenses.adversarial.objectives import DataFreeShield
from bench_defenses.adversarial.tagged_images import Tag, TaggedImages
from bench_defenses.adversarial.trainer import Schedule, StudentTraining, train_student
from bench_defenses.datafree.synthesis import SynthesisRecipe, synthesise
from torch import nn
from torch.nn import functional as F

from bench.models.classifier import Classifier
from bench.models.resnet import CifarResNet
from bench.noise import BuildNoise, Noise, Stream, isolated
from bench.threat import ThreatModel
from bench.victim import frozen

pytestmark = pytest.mark.timeout(1800)

BATCH, BATCHES, GROUP, STEPS, ITERATIONS = 200, 2, 2, 10, 8
EPS, RATE, TAU = 4 / 255, 1e-4, 20.0
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SHAPE = (3, 32, 32)
NOISE = BuildNoise(0)


def network():
    with isolated(0):
        return Classifier(
            CifarResNet((3, 3, 3), 10, 3, projection=False), 10, mean=MEAN, std=STD
        ).eval()


def pixels():
    images = Noise.of(0, Stream.BUILD, range(BATCH * BATCHES)).uniform("pixels", SHAPE)
    return images, torch.arange(len(images)) % 10


class Plain(nn.Module):
    """Normalisation and network, without noise."""

    def __init__(self, classifier):
        super().__init__()
        self.network = classifier.network
        self.register_buffer("mean", classifier.mean)
        self.register_buffer("std", classifier.std)

    def forward(self, images):
        return self.network((images - self.mean) / self.std)


# Training


def our_training(epochs=1):
    teacher = network()
    images, labels = pixels()
    schedule = Schedule(epochs=epochs, batch=BATCH, rate=RATE, group=GROUP, steps=STEPS)
    tagged, ball = TaggedImages(images, labels, Tag.SYNTHETIC), ThreatModel("linf", EPS)
    training = StudentTraining(tagged, DataFreeShield(), schedule, ball)
    train_student(copy.deepcopy(teacher), teacher, training, NOISE, needs=())


def released_training(epochs=1):
    teacher = Plain(network()).eval()
    student = copy.deepcopy(teacher)
    images, _ = pixels()
    optimiser = torch.optim.SGD(
        student.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        held = []
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            held.append(released_gradients(student, teacher, images[rows], generator))
            if len(held) == GROUP:
                for parameter, gradients in zip(
                    student.parameters(), zip(*held, strict=True), strict=True
                ):
                    parameter.grad = released_refinement(gradients)
                optimiser.step()
                held = []


def released_gradients(student, teacher, x, generator):
    """Of one batch, on a copy of the student; only the copy's BatchNorm statistics come back."""
    proxy = copy.deepcopy(student)
    attacked = released_attack(proxy.eval(), x, generator)
    proxy.train()
    distilled, answers = proxy(x), teacher(x)
    clean, robust = proxy(x), proxy(attacked)
    soft = F.softmax(answers / TAU, 1)
    loss = TAU**2 * (soft * (soft.log() - F.log_softmax(distilled / TAU, 1))).mean()
    loss = loss + released_kl(robust, answers.softmax(1)) + released_kl(robust, clean.softmax(1))
    loss.backward()
    for own, other in zip(student.buffers(), proxy.buffers(), strict=True):
        own.copy_(other)
    return [parameter.grad for parameter in proxy.parameters()]


def released_attack(model, x, generator):
    attacked = x + 0.001 * torch.randn(x.shape, generator=generator)
    for _ in range(STEPS):
        attacked.requires_grad_()
        value = released_kl(model(attacked), model(x).softmax(1), "sum")
        (slope,) = torch.autograd.grad(value, attacked)
        attacked = attacked.detach() + EPS / 4 * slope.sign()
        attacked = torch.min(torch.max(attacked, x - EPS), x + EPS).clamp(0, 1)
    return attacked.detach()


def released_kl(logits, target, reduction="batchmean"):
    return F.kl_div(F.log_softmax(logits, 1), target + 1e-8, reduction=reduction)


def released_refinement(gradients, threshold=0.5):
    signs = sum(one.sign() for one in gradients)
    up, down = (
        sum(one.clamp(min=0) for one in gradients),
        sum(one.clamp(max=0) for one in gradients),
    )
    kept = signs.abs() >= threshold * len(gradients)
    return torch.where(signs > 0, up, torch.where(signs < 0, down, up + down)) * kept


# Synthesis


def our_synthesis(iterations=ITERATIONS, jitter=2):
    classifier = network()
    recipe = SynthesisRecipe(
        BATCH, BATCH, iterations, coefficients="fixed", jitter=jitter, keep="last"
    )
    with frozen(classifier):
        return synthesise(classifier, SHAPE, recipe, 0, NOISE).images


def released_synthesis(iterations=ITERATIONS, jitter=2):
    """Draws the same start, so that the images can be compared where nothing is rolled."""
    net, gaps, order = network().network, [], random.Random(0)
    handles = [
        part.register_forward_hook(released_hook(gaps))
        for part in net.modules()
        if isinstance(part, nn.BatchNorm2d)
    ]
    z = NOISE.numbered("image", range(BATCH)).normal("start", SHAPE).requires_grad_()
    labels = torch.zeros(BATCH, dtype=torch.long)
    optimiser = torch.optim.Adam([z], lr=0.1)
    best = float("inf")
    for _ in range(iterations):
        gaps.clear()
        offset = order.randint(-jitter, jitter), order.randint(-jitter, jitter)
        rolled = torch.roll(z, offset, (2, 3))
        optimiser.zero_grad()
        net.zero_grad()
        loss = (
            F.cross_entropy(net(rolled), labels)
            + sum(gaps)
            + 2.5e-5 * (250 / BATCH) ** 0.5 * released_variation(rolled)
        )
        if loss.item() < best:
            best, kept = loss.item(), z.data
        loss.backward()
        optimiser.step()
    for handle in handles:
        handle.remove()
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))
    return (kept * std + mean).clamp(0, 1)


def released_hook(gaps):
    def hook(layer, inputs, _):
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), unbiased=False)
        gaps.append(
            torch.norm(layer.running_var - variance) + torch.norm(layer.running_mean - mean)
        )

    return hook


def released_variation(x):
    pairs = (
        (x[..., :, :-1], x[..., :, 1:]),
        (x[..., :-1, :], x[..., 1:, :]),
        (x[..., 1:, :-1], x[..., :-1, 1:]),
        (x[..., :-1, :-1], x[..., 1:, 1:]),
    )
    return sum(torch.norm(a - b) for a, b in pairs)


# Both


@pytest.mark.parametrize("code", [our_training, released_training], ids=["bench", "as released"])
def test_training_epoch(benchmark, code):
    torch.set_num_threads(1)
    benchmark.group = f"training, one epoch of {BATCH * BATCHES} images"
    benchmark.pedantic(code, rounds=2, warmup_rounds=1)


@pytest.mark.parametrize("code", [our_synthesis, released_synthesis], ids=["bench", "as released"])
def test_synthesis(benchmark, code):
    torch.set_num_threads(1)
    benchmark.group = f"synthesis, {ITERATIONS} iterations of {BATCH} images"
    benchmark.pedantic(code, rounds=5, warmup_rounds=1)


def test_both_make_the_same_images():
    torch.set_num_threads(1)
    ours, released = our_synthesis(3, jitter=0), released_synthesis(3, jitter=0)
    # Adam's first steps have the length of the rate whatever the gradient is: a pixel without one
    # goes where rounding says.
    assert ((ours - released).abs() < 1e-3).float().mean() > 0.99


@pytest.mark.parametrize(
    ("code", "forwards"),
    [(our_training, 13), (released_training, 24)],
    ids=["bench", "as released"],
)
def test_forward_passes_of_a_training_step(code, forwards, monkeypatch):
    """Of the second epoch: the first one of ours has the teacher's answers in it, once for all
    epochs.
    """
    torch.set_num_threads(1)
    monkeypatch.setattr(sys.modules[__name__], "BATCH", 10)
    counts = Counter()

    def count(module, inputs, output):
        if isinstance(module, CifarResNet):
            counts[epochs] += len(output)

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        for epochs in (1, 2):
            code(epochs)
    finally:
        handle.remove()
    print(f"\n{code.__name__}: {counts[2] - counts[1]} forward passes for {BATCH * BATCHES} images")
    assert counts[2] - counts[1] == forwards * BATCH * BATCHES

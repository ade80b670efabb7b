"""A folder in the layout of diffusers: what is read, and what is refused."""

import pytest
import safetensors.torch
import torch

from bench.diffusion.unet import build_unet
from tests.diffusion.helpers import CONFIG, Z, diffusers, loaded, output, written
from tests.helpers import ROOT
from tests.toys import message


def test_a_folder_of_diffusers(network, tmp_path):
    model = loaded(written(tmp_path / "m", network))
    with torch.no_grad():
        predicted = model(Z, 7)
    assert torch.equal(predicted.epsilon, output(network)) and predicted.log_variance is None
    assert (
        model.shape == (1, 8, 8)
        and model.steps == model.trained_steps == 100
        and model.trained_on == ()
    )
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert torch.allclose(
        model.alpha_bar, (1 - torch.linspace(1e-3, 0.05, 100, dtype=torch.float64)).cumprod(0)
    )


@pytest.mark.parametrize(
    ("places", "params"),
    [
        ({"home": "unet", "scheduler": "scheduler"}, {}),
        ({"home": "unet_ema", "scheduler": "scheduler"}, {"subfolder": "unet_ema"}),
        ({"save": "bin"}, {}),
        ({"home": "unet", "save": "bin"}, {}),
    ],
)
def test_other_layouts(network, tmp_path, places, params):
    model = loaded(written(tmp_path / "m", network, **places), **params)
    assert torch.equal(model(Z, 7).epsilon, output(network))


def test_what_diffusers_saves(network, tmp_path):
    network.save_pretrained(tmp_path / "unet")
    diffusers.DDPMScheduler(num_train_timesteps=50).save_pretrained(tmp_path / "scheduler")
    model = loaded(tmp_path)
    assert torch.equal(model(Z, 7).epsilon, output(network)) and model.steps == 50


def test_old_names_of_attention_layers(network, tmp_path):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in network.state_dict().items():
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        state[key] = value
    assert "mid_block.attentions.0.proj_attn.weight" in state
    folder = written(tmp_path / "m", network)
    safetensors.torch.save_file(state, folder / "diffusion_pytorch_model.safetensors")
    assert torch.equal(loaded(folder)(Z, 7).epsilon, output(network))


def test_learned_variance(tmp_path):
    network = build_unet({**CONFIG, "out_channels": 2}).eval()
    folder = written(
        tmp_path / "m",
        network,
        config={"out_channels": 2},
        schedule={"variance_type": "learned_range"},
    )
    predicted = loaded(folder)(Z, 7)
    assert torch.equal(torch.cat([predicted.epsilon, predicted.log_variance], 1), output(network))
    folder = written(tmp_path / "fixed", network, config={"out_channels": 2})
    assert "variance_type in" in message(
        lambda: loaded(folder)
    ) and "2 output channels, not 1" in message(lambda: loaded(folder))


def test_folders_that_cannot_be_used(network, tmp_path):
    count = iter(range(100))

    def line(spoil=None, **options):
        folder = written(tmp_path / str(next(count)), network, **options)
        if spoil:
            spoil(folder)
        return message(lambda: loaded(folder))

    def weights(state):
        return lambda folder: safetensors.torch.save_file(
            state, folder / "diffusion_pytorch_model.safetensors"
        )

    state = network.state_dict()
    assert "no such folder" in message(lambda: loaded(tmp_path / "none"))
    assert "has no config.json or unet/config.json" in line(lambda f: (f / "config.json").unlink())
    assert "has no scheduler_config.json or scheduler/" in line(
        lambda f: (f / "scheduler_config.json").unlink()
    )
    assert "has no diffusion_pytorch_model.safetensors" in line(
        lambda f: (f / "diffusion_pytorch_model.safetensors").unlink()
    )
    assert "not readable JSON" in line(lambda f: (f / "config.json").write_text("{"))
    assert "not the configuration of a network" in line(
        lambda f: (f / "config.json").write_text("[]")
    )
    assert "not complete safetensors" in line(
        lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"0" * 99)
    )
    assert "lacks the tensor" in line(
        weights({k: v for k, v in state.items() if k != "conv_out.bias"})
    )
    assert "surplus tensor" in line(weights({**state, "extra": torch.zeros(1)}))
    assert "has shape (3,), not (1,)" in line(weights({**state, "conv_out.bias": torch.zeros(3)}))
    assert "check config.json" in line(config={"down_block_types": ["Nothing2D", "DownBlock2D"]})
    assert "_class_name='Transformer2DModel'" in line(config={"_class_name": "Transformer2DModel"})
    assert "num_class_embeds=10" in line(config={"num_class_embeds": 10})
    assert "set in_channels and sample_size" in line(config={"sample_size": None})
    assert "prediction_type: input should be 'epsilon'" in line(
        schedule={"prediction_type": "v_prediction"}
    )
    assert "beta_schedule: input should be" in line(schedule={"beta_schedule": "sigmoid"})
    assert "rescale_betas_zero_snr" in line(schedule={"rescale_betas_zero_snr": True})
    assert "variance_type: input should be" in line(schedule={"variance_type": "learned"})
    assert "not 100 numbers between 0 and 1" in line(schedule={"trained_betas": [0.5]})
    assert "lists none" in line(schedule={"beta_schedule": "trained_betas"})
    assert "more than the schedule has" in line(card={"trained_steps": 101})
    assert "but its description says abc" in line(
        card={"sha256": {"diffusion_pytorch_model.safetensors": "abc"}}
    )
    assert "trained_on: " in line(card={"trained_on": 7})
    folder = written(tmp_path / "m", network)
    assert "no weights after 5 steps: it keeps only the last ones" in message(
        lambda: loaded(folder, step=5)
    )


def test_nothing_is_unpickled(network, tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    folder = written(tmp_path / "m", network, save="bin")
    torch.save({"conv_in.weight": Evil()}, folder / "diffusion_pytorch_model.bin")
    assert "never unpickled" in message(lambda: loaded(folder))


@pytest.mark.parametrize(
    ("name", "shape", "times", "parameters"),
    [
        ("cifar10-purifier", (3, 32, 32), 200, 2_942_867),
        ("fashion-purifier", (1, 28, 28), 1000, 280_177),
    ],
)
def test_a_committed_purifier_reads(name, shape, times, parameters):
    """Its weights have the checksum that its card says, and fit the configuration."""
    model = loaded(ROOT / "leaderboards" / "models" / name)
    assert model.shape == shape and (model.trained_steps, model.steps) == (times, 1000)
    assert all(name.endswith("/train") for name in model.trained_on)
    assert sum(value.numel() for value in model.network.parameters()) == parameters

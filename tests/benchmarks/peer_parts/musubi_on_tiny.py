"""Runs a script of musubi-tuner on the packaged tiny base, whose sizes replace the released ones in its constants.

python musubi_on_tiny.py CHECKOUT BASE SCRIPT [arguments of the script]

Its own autoencoder always has attention in the middle, which the tiny one has not, so diffusers' class encodes.
"""

import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

checkout, base, script = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
sys.path.insert(0, str(checkout / "src"))
# Imported before there is a stand-in for torchvision, which they would take for the real one.
from diffusers import AutoencoderKL  # noqa: E402
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM  # noqa: E402, F401

torchvision = types.ModuleType("torchvision")
torchvision.__spec__ = None
sys.modules["torchvision"] = torchvision

import musubi_tuner.zimage.zimage_autoencoder as autoencoder  # noqa: E402
import musubi_tuner.zimage.zimage_config as config  # noqa: E402
import musubi_tuner.zimage.zimage_utils as utils  # noqa: E402


def sizes_of(part: str) -> dict[str, Any]:
    """Return the configuration of a part of the base."""
    found: dict[str, Any] = json.loads((base / part / "config.json").read_text())
    return found


transformer, vae, encoder = sizes_of("transformer"), sizes_of("vae"), sizes_of("text_encoder")
config.DEFAULT_TRANSFORMER_DIM = transformer["dim"]
config.DEFAULT_TRANSFORMER_N_LAYERS = transformer["n_layers"]
config.DEFAULT_TRANSFORMER_N_REFINER_LAYERS = transformer["n_refiner_layers"]
config.DEFAULT_TRANSFORMER_N_HEADS = config.DEFAULT_TRANSFORMER_N_KV_HEADS = transformer["n_heads"]
config.DEFAULT_TRANSFORMER_CAP_FEAT_DIM = transformer["cap_feat_dim"]
config.ROPE_AXES_DIMS, config.ROPE_AXES_LENS = transformer["axes_dims"], transformer["axes_lens"]
config.ZIMAGE_VAE_SCALING_FACTOR, config.ZIMAGE_VAE_SHIFT_FACTOR = vae["scaling_factor"], vae["shift_factor"]


class TinyAutoencoder:
    """What musubi-tuner asks of its autoencoder, by diffusers' class."""

    def __init__(self) -> None:
        self.model = AutoencoderKL.from_pretrained(base / "vae")
        self.device, self.dtype = self.model.device, self.model.dtype

    def encode(self, pixels: Any) -> Any:
        """Return the distribution of latents."""
        return self.model.encode(pixels).latent_dist

    def decode(self, latents: Any) -> Any:
        """Return pixels."""
        return self.model.decode(latents).sample

    def eval(self) -> "TinyAutoencoder":
        """Return itself; it is never trained."""
        return self

    def to(self, *_: Any, **__: Any) -> "TinyAutoencoder":
        """Return itself; it stays where it is."""
        return self

    def requires_grad_(self, _: bool) -> "TinyAutoencoder":
        """Return itself, without gradients."""
        self.model.requires_grad_(False)
        return self


load_qwen3 = utils.load_qwen3
not_sizes = {"architectures", "transformers_version", "dtype"}
utils.Qwen3Config = lambda **_: Qwen3Config(**{name: value for name, value in encoder.items() if name not in not_sizes})
utils.load_qwen3 = lambda path, dtype, device, **more: load_qwen3(
    path, dtype=dtype, device=device, **(more | {"tokenizer_id": str(base / "tokenizer")})
)
autoencoder.load_autoencoder_kl = lambda *_, **__: TinyAutoencoder()
sys.argv = [script, *sys.argv[4:]]
runpy.run_path(str(checkout / "src" / "musubi_tuner" / script), run_name="__main__")

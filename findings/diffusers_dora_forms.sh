#!/bin/sh
# diffusers: of the two forms in which trainers save a DoRA for Z-Image, with the lengths of the rows as `dora_scale` (kohya,
# LyCORIS, ComfyUI) or as `lora_magnitude_vector` (peft), the first is loaded as a plain LoRA: the lengths are left out with a
# warning, and the layer computes something else. The second is applied whole, although no part of diffusers names it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'torch==2.13.0' 'numpy==2.4.6' 'diffusers==0.42.1' 'transformers==5.23.0' 'peft==0.21.2' 'accelerate==1.15.0'
venv/bin/python - <<'EOF' 2>&1 | grep -v "Warning:"
import sys
import torch, diffusers, peft
from diffusers import ZImageTransformer2DModel
from diffusers.loaders import ZImageLoraLoaderMixin

print("diffusers", diffusers.__version__, "peft", peft.__version__)
torch.manual_seed(0)
name = "layers.0.attention.to_q"
A, B, share = torch.randn(2, 96) * 0.1, torch.randn(96, 2) * 0.1, 1 + torch.rand(96, 1)
x = torch.randn(4, 96)

def transformer():
    torch.manual_seed(1)
    return ZImageTransformer2DModel(dim=96, n_layers=1, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=32,
                                    axes_dims=(8, 12, 12), axes_lens=(64, 64, 64))

weight = transformer().get_submodule(name).weight.detach()
changed = weight + B @ A
magnitude = share * changed.norm(dim=1, keepdim=True)  # so the rows get 1 to 2 times their length
wanted = {"DoRA": x @ (share * changed).T, "LoRA alone": x @ changed.T, "nothing": x @ weight.T}

def computed(lengths, value):
    model = transformer()
    file = {f"transformer.{name}.lora_A.weight": A, f"transformer.{name}.lora_B.weight": B, f"transformer.{name}.{lengths}": value}
    state = ZImageLoraLoaderMixin.lora_state_dict(dict(file))
    ZImageLoraLoaderMixin.load_lora_into_transformer(state, model)
    with torch.no_grad():
        y = model.get_submodule(name)(x)
        bias = model.get_submodule(name).get_base_layer().bias
    return [what for what, each in wanted.items() if torch.allclose(y, each if bias is None else each + bias, rtol=1e-3, atol=1e-4)]

seen = {"dora_scale": computed("dora_scale", magnitude), "lora_magnitude_vector": computed("lora_magnitude_vector", magnitude[:, 0])}
for form, what in seen.items():
    print(f"{form}: the layer computes {what}")
sys.exit(0 if seen == {"dora_scale": ["LoRA alone"], "lora_magnitude_vector": ["DoRA"]} else 1)
EOF

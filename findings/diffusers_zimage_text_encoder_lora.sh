#!/bin/sh
# diffusers: a LoRA for Z-Image that also holds weights of the text encoder loads without a word, and those weights are
# dropped: the pipeline's text encoder has no adapter afterwards. Only tiny random models are made here.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'torch==2.13.0' 'numpy==2.4.6' 'diffusers==0.42.1' 'transformers==5.23.0' 'peft==0.21.2' 'accelerate==1.15.0'
venv/bin/python - <<'EOF' 2>&1 | grep -v Warning
import sys, warnings
import torch, diffusers, peft, transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

warnings.simplefilter("always")
print("diffusers", diffusers.__version__, "peft", peft.__version__, "transformers", transformers.__version__)
transformer = ZImageTransformer2DModel(dim=96, n_layers=1, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=32,
                                       axes_dims=(8, 12, 12), axes_lens=(64, 64, 64))
encoder = Qwen3Model(Qwen3Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=2, num_key_value_heads=1, head_dim=16))
pipeline = ZImagePipeline(FlowMatchEulerDiscreteScheduler(), AutoencoderKL(latent_channels=16), encoder, None, transformer)

def pair(name, out, into):
    return {f"{name}.lora_A.weight": torch.randn(2, into), f"{name}.lora_B.weight": torch.randn(out, 2)}

lora = pair("transformer.layers.0.attention.to_q", 96, 96) | pair("text_encoder.layers.0.self_attn.q_proj", 32, 32)
pipeline.load_lora_weights(lora)
found = pipeline.get_list_adapters()
told = [name for name, _ in encoder.named_parameters() if "lora" in name]
print("adapters after loading:", found, "- adapter weights in the text encoder:", len(told))
sys.exit(0 if list(found) == ["transformer"] and not told else 1)
EOF

"""ComfyUI: workflows for a LoRA, and the names of layers that ComfyUI applies."""

"""The networks, the only home of flax: Qwen3-VL, the value-head discriminator, Hugging Face folders
in and out. In: parameter trees and prompt groups; out: hidden states, scores. It imports core."""

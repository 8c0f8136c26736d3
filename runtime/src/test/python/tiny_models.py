"""Logits of tiny random models, computed with PyTorch and Hugging Face transformers.

    pip install torch transformers
    python tiny_models.py ../resources/io/fletch/runtime/arch/tiny

Writes one JSON file per architecture: the configuration, the names and shapes of the tensors, token ids and the logits of every
position in float32. The weights themselves are not stored: element i of a tensor is offset + scale * (2 u - 1), where u is a hash of
the tensor's name and i (see `values`), which TinyModelsTest computes again.
"""
import json, math, os, sys, zlib
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

VOCAB, HIDDEN, HEADS, KV, DIM, FF, LAYERS = 80, 32, 4, 2, 8, 48, 3
BASE = dict(vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=KV, intermediate_size=FF,
            num_hidden_layers=LAYERS, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=False, hidden_act="silu",
            rope_theta=10000.0, pad_token_id=0, bos_token_id=1, eos_token_id=2, attention_dropout=0.0)
HEAD = dict(head_dim=DIM)
MODELS = {
    "llama": dict(BASE, model_type="llama"),
    "qwen2": dict(BASE, model_type="qwen2"),
    "qwen3": dict(BASE, **HEAD, model_type="qwen3"),
    "mistral-window": dict(BASE, **HEAD, model_type="mistral", sliding_window=8),
    "mixtral": dict(BASE, model_type="mixtral", num_local_experts=5, num_experts_per_tok=2),
    "qwen2moe": dict(BASE, model_type="qwen2_moe", num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16,
                     shared_expert_intermediate_size=24, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[1]),
    "qwen3moe": dict(BASE, **HEAD, model_type="qwen3_moe", num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16,
                     norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[]),
    "olmoe": dict(BASE, model_type="olmoe", num_experts=6, num_experts_per_tok=2, norm_topk_prob=False),
    "olmo2": dict(BASE, model_type="olmo2"),
    "granite": dict(BASE, model_type="granite", embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.1,
                    logits_scaling=8.0),
    "smollm3": dict(BASE, model_type="smollm3", num_hidden_layers=5, no_rope_layers=[1, 1, 1, 0, 1], use_sliding_window=False),
    "starcoder2": dict(BASE, model_type="starcoder2", norm_epsilon=1e-5, use_bias=True, hidden_act="gelu_pytorch_tanh",
                       sliding_window=None),
    "gemma2": dict(BASE, **HEAD, model_type="gemma2", query_pre_attn_scalar=16, attn_logit_softcapping=20.0,
                   final_logit_softcapping=15.0, sliding_window=8, tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh",
                   num_hidden_layers=4),
    "gemma3": dict(BASE, **HEAD, model_type="gemma3_text", query_pre_attn_scalar=16, sliding_window=8, num_hidden_layers=6,
                   tie_word_embeddings=True, hidden_activation="gelu_pytorch_tanh", rope_local_base_freq=5000.0,
                   sliding_window_pattern=6),
    "falcon-7b": dict(model_type="falcon", vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS, num_hidden_layers=LAYERS,
                      multi_query=True, new_decoder_architecture=False, parallel_attn=True, bias=False, alibi=False,
                      tie_word_embeddings=True, layer_norm_epsilon=1e-5, bos_token_id=1, eos_token_id=2),
    "falcon-40b": dict(model_type="falcon", vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS,
                       num_hidden_layers=LAYERS, num_kv_heads=KV, new_decoder_architecture=True, parallel_attn=True, bias=False,
                       alibi=False, tie_word_embeddings=True, layer_norm_epsilon=1e-5, bos_token_id=1, eos_token_id=2),
    # Diffusion models have the bodies of families that transformers knows, under another mask.
    "dream": dict(BASE, model_type="qwen2", becomes=dict(model_type="Dream", mask_token_id=79), sees="all"),
    "llada-moe": dict(BASE, **HEAD, model_type="qwen3_moe", num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16,
                      norm_topk_prob=False, becomes=dict(model_type="llada_moe", mask_token_id=79), sees="all"),
    "sdar": dict(BASE, **HEAD, model_type="qwen3", becomes=dict(model_type="sdar", mask_token_id=79, block_size=4), sees=4),
    "sdar-moe": dict(BASE, **HEAD, model_type="qwen3_moe", num_experts=6, num_experts_per_tok=3, moe_intermediate_size=16,
                     norm_topk_prob=True, becomes=dict(model_type="sdar_moe", mask_token_id=79, block_size=8), sees=8),
    # Models that give vectors: what is stored as logits are the hidden states.
    "bert": dict(model_type="bert", vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS, num_hidden_layers=LAYERS,
                 intermediate_size=FF, max_position_embeddings=64, hidden_act="gelu", layer_norm_eps=1e-12, hidden=True),
    "nomic-bert": dict(model_type="nomic_bert", vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS, head_dim=DIM,
                       num_hidden_layers=LAYERS, intermediate_size=FF, max_position_embeddings=64, layer_norm_eps=1e-12,
                       rope_parameters=dict(rope_type="default", rope_theta=1000.0), hidden=True),
    "qwen3-embedding": dict(BASE, **HEAD, model_type="qwen3", hidden=True),
    "deepseek2": dict(BASE, model_type="deepseek_v2", num_key_value_heads=HEADS, n_routed_experts=6, n_shared_experts=1,
                      num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1, norm_topk_prob=False,
                      topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.5, q_lora_rank=None, kv_lora_rank=10,
                      qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6),
    "phi3": dict(BASE, model_type="phi3", original_max_position_embeddings=256, sliding_window=None),
}


def values(name, shape, scale, offset):
    n = math.prod(shape)
    h = (np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(zlib.crc32(name.encode()))).astype(np.uint64)
    h ^= h >> np.uint64(31)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    u = (h >> np.uint64(40)).astype(np.float64) / float(1 << 24)
    return (offset + scale * (2 * u - 1)).astype(np.float32).reshape(shape)


def spread(name, shape, offset_one):
    """Scale and offset that keep activations of order one and make experts, biases and norms matter."""
    if len(shape) == 1:
        if name.endswith("bias"):
            return 0.3, 0.0
        return 0.3, 0.0 if offset_one else 1.0
    if "embed" in name:
        return 1.0, 0.0
    return 1.5 / math.sqrt(shape[-1]), 0.0


def checkpoint_names(model):
    """State as it is written to disk (transformers keeps experts fused in memory)."""
    import tempfile
    from safetensors import safe_open
    with tempfile.TemporaryDirectory() as d:
        model.save_pretrained(d, safe_serialization=True)
        with safe_open(os.path.join(d, "model.safetensors"), "np") as f:
            return {k: list(f.get_slice(k).get_shape()) for k in f.keys()}


def build(key, settings):
    import tempfile
    from safetensors.numpy import save_file
    settings = dict(settings)
    becomes = settings.pop("becomes", {})
    sees = settings.pop("sees", None)
    hidden = settings.pop("hidden", False)
    auto = AutoModel if hidden else AutoModelForCausalLM
    kind = settings.pop("model_type")
    config = AutoConfig.for_model(kind, **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    shapes = checkpoint_names(auto.from_config(config))
    gemma = kind.startswith("gemma")
    tensors = []
    with tempfile.TemporaryDirectory() as d:
        state = {}
        for name, shape in sorted(shapes.items()):
            scale, offset = spread(name, shape, gemma)
            tensors.append(dict(name=name, shape=shape, scale=scale, offset=offset))
            state[name] = values(name, shape, scale, offset)
        save_file(state, os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
        config.save_pretrained(d)
        model, info = auto.from_pretrained(d, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
        missing = [m for m in info["missing_keys"] if m != "lm_head.weight"]
        assert not missing and not info["unexpected_keys"], info
        written = json.load(open(os.path.join(d, "config.json")))
    ids = [(i * i * 7 + 3 * i + 5) % VOCAB for i in range(20)]
    model.eval()
    with torch.no_grad():
        mask = None
        if sees is not None:
            at = np.arange(len(ids)) if sees != "all" else np.zeros(len(ids))
            at = at // (1 if sees == "all" else sees)
            mask = torch.where(torch.tensor(at[None, :] <= at[:, None]), 0.0, torch.finfo(torch.float32).min)[None, None]
        out = model(torch.tensor([ids]), attention_mask=mask)
        logits = (out.last_hidden_state if hidden else out.logits)[0].float().numpy()
    written = {k: v for k, v in settings.items() if v is not None} | {"model_type": kind} | {
        k: v for k, v in written.items() if k in ("rope_parameters", "layer_types", "head_dim")} | becomes
    flag = dict(hidden=True) if hidden else {}
    return dict(**flag, source=f"transformers {transformers.__version__}, torch {torch.__version__}", config=written, tensors=tensors, ids=ids,
                logits=[[round(float(x), 6) for x in row] for row in logits])


def llada2():
    """LLaDA 2 written down from its description (no release of transformers has it): float64, one position at a time."""
    config = dict(model_type="llada2_moe", vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=KV,
                  head_dim=DIM, intermediate_size=FF, num_hidden_layers=3, max_position_embeddings=256, rms_norm_eps=1e-6,
                  tie_word_embeddings=False, hidden_act="silu", rope_theta=600000.0, partial_rotary_factor=0.5, num_experts=8,
                  num_experts_per_tok=3, num_shared_experts=1, moe_intermediate_size=16, n_group=4, topk_group=2,
                  first_k_dense_replace=1, routed_scaling_factor=2.5, norm_topk_prob=True, score_function="sigmoid",
                  moe_router_enable_expert_bias=True, mask_token_id=79, block_size=4)
    at, tensors = {}, []

    def w(name, *shape, scale=None, offset=0.0):
        if name not in at:
            scale = scale or 1.5 / math.sqrt(shape[-1])
            tensors.append(dict(name=name, shape=list(shape), scale=scale, offset=offset))
            at[name] = values(name, shape, scale, offset).astype(np.float64)
        return at[name]

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w(name, x.shape[-1], scale=0.3, offset=1.0)

    def silu(x):
        return x / (1 + np.exp(-x))

    def unit(x, name, width):
        gate, up = w(name + ".gate_proj.weight", width, HIDDEN), w(name + ".up_proj.weight", width, HIDDEN)
        return w(name + ".down_proj.weight", HIDDEN, width) @ (silu(gate @ x) * (up @ x))

    def rotate(x, position):
        half = DIM // 4
        angle = position * 600000.0 ** (-np.arange(half) / half)
        a, b = x[:, :half].copy(), x[:, half:2 * half].copy()
        y = x.copy()
        y[:, :half] = a * np.cos(angle) - b * np.sin(angle)
        y[:, half:2 * half] = b * np.cos(angle) + a * np.sin(angle)
        return y

    def experts(x, name):
        p = 1 / (1 + np.exp(-(w(name + ".gate.weight", 8, HIDDEN) @ x)))
        choice = p + w(name + ".gate.expert_bias", 8, scale=0.5)
        groups = [sorted(choice[2 * g:2 * g + 2])[-2:] for g in range(4)]
        kept = sorted(range(4), key=lambda g: -sum(groups[g]))[:2]
        chosen = sorted((e for e in range(8) if e // 2 in kept), key=lambda e: -choice[e])[:3]
        total = sum(p[e] for e in chosen)
        for e in range(8):
            unit(x, f"{name}.experts.{e}", 16)
        y = sum(2.5 * p[e] / total * unit(x, f"{name}.experts.{e}", 16) for e in chosen)
        return y + unit(x, name + ".shared_experts", 16)

    ids = [(i * i * 7 + 3 * i + 5) % VOCAB for i in range(18)]
    x = w("model.word_embeddings.weight", VOCAB, HIDDEN, scale=1.0)[ids]
    for i in range(3):
        name = f"model.layers.{i}."
        h = norm(x, name + "input_layernorm.weight")
        qkv = h @ w(name + "attention.query_key_value.weight", (HEADS + 2 * KV) * DIM, HIDDEN).T
        qkv = qkv.reshape(len(ids), HEADS + 2 * KV, DIM)
        q = norm(qkv[:, :HEADS], name + "attention.query_layernorm.weight")
        k = norm(qkv[:, HEADS:HEADS + KV], name + "attention.key_layernorm.weight")
        v = qkv[:, HEADS + KV:]
        q = np.stack([rotate(r, t) for t, r in enumerate(q)])
        k = np.stack([rotate(r, t) for t, r in enumerate(k)])
        mixed = np.zeros((len(ids), HEADS * DIM))
        for t in range(len(ids)):
            seen = min(len(ids), (t // 4 + 1) * 4)
            for head in range(HEADS):
                s = k[:seen, head // 2] @ q[t, head] / math.sqrt(DIM)
                a = np.exp(s - s.max())
                mixed[t, head * DIM:(head + 1) * DIM] = (a / a.sum()) @ v[:seen, head // 2]
        x = x + mixed @ w(name + "attention.dense.weight", HIDDEN, HEADS * DIM).T
        h = norm(x, name + "post_attention_layernorm.weight")
        x = x + np.stack([unit(r, name + "mlp", FF) if i < 1 else experts(r, name + "mlp") for r in h])
    logits = norm(x, "model.norm.weight") @ w("lm_head.weight", VOCAB, HIDDEN).T
    return dict(source="llada2() of tiny_models.py, numpy " + np.__version__, config=config, tensors=tensors, ids=ids,
                logits=[[round(float(v), 6) for v in row] for row in logits])


class Weights:
    """Tensors by the names of a checkpoint, in float64, and the functions that models of this file share."""

    def __init__(self):
        self.at, self.tensors = {}, []

    def __call__(self, name, *shape, scale=None, offset=0.0):
        if name not in self.at:
            scale = scale or 1.5 / math.sqrt(shape[-1])
            self.tensors.append(dict(name=name, shape=list(shape), scale=scale, offset=offset))
            self.at[name] = values(name, shape, scale, offset).astype(np.float64)
        return self.at[name]

    def norm(self, x, name, eps=1e-5):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self(name, x.shape[-1], scale=0.3, offset=1.0)

    def unit(self, x, name, width):
        g = self(name + ".gate_proj.weight", width, HIDDEN) @ x
        return self(name + ".down_proj.weight", HIDDEN, width) @ (g / (1 + np.exp(-g)) * (self(name + ".up_proj.weight", width, HIDDEN) @ x))


def attend(q, k, v, scale):
    """Causal attention of rows [tokens, heads, dim] with as many key heads."""
    out = np.zeros((len(q), q.shape[1], v.shape[2]))
    for t in range(len(q)):
        for h in range(q.shape[1]):
            s = k[:t + 1, h] @ q[t, h] * scale
            a = np.exp(s - s.max())
            out[t, h] = (a / a.sum()) @ v[:t + 1, h]
    return out.reshape(len(q), -1)


def routed(w, x, name, router, count, used, width, scale=1.0):
    """Softmax over all experts, the best few with the weights that they have."""
    s = w(router, count, HIDDEN) @ x
    p = np.exp(s - s.max())
    p /= p.sum()
    for e in range(count):
        w.unit(x, f"{name}.experts.{e}", width)
    chosen = sorted(range(count), key=lambda e: -p[e])[:used]
    return scale * sum(p[e] * w.unit(x, f"{name}.experts.{e}", width) for e in chosen)


def finish(what, w, x, config, ids):
    logits = w.norm(x, "model.norm.weight") @ w("lm_head.weight", VOCAB, HIDDEN).T
    return dict(source=f"{what}() of tiny_models.py, numpy {np.__version__}", config=config, tensors=w.tensors, ids=ids,
                logits=[[round(float(v), 6) for v in row] for row in logits])


IDS = [(i * i * 7 + 3 * i + 5) % VOCAB for i in range(18)]


def deepseek(condensed):
    """DeepSeekMoE: llama with a first dense layer, softmax routing and shared experts. Condensed (CD-MoE): layer 1 runs the shared
    expert and two experts with constant weights, layer 2 the shared expert alone."""
    config = dict(BASE, model_type="deepseek", num_key_value_heads=HEADS, n_routed_experts=6, n_shared_experts=2,
                  num_experts_per_tok=3, moe_intermediate_size=16, first_k_dense_replace=1, moe_layer_freq=1, norm_topk_prob=False,
                  scoring_func="softmax", num_hidden_layers=4)
    w = Weights()
    fixed = {1: [("model.layers.1.mlp.fixed_experts.weight", 2, 0.1, 0.4)], 2: [("model.layers.2.mlp.fixed_experts.weight", 1, 0.0, 0.0)]}

    def rotate(x, position):
        half = DIM // 2
        angle = position * 10000.0 ** (-np.arange(half) / half)
        a, b = x[:, :half], x[:, half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)

    def experts(x, i):
        name = f"model.layers.{i}.mlp"
        shared = w.unit(x, name + ".shared_experts", 32)
        if not condensed or i == 3:
            return shared + routed(w, x, name, name + ".gate.weight", 6, 3, 16)
        tensor, n, scale, offset = fixed[i][0]
        c = values(tensor, [n], scale, offset) if tensor not in w.at else w.at[tensor]
        if tensor not in w.at:
            w.tensors.append(dict(name=tensor, shape=[n], scale=scale, offset=offset))
            w.at[tensor] = c
        return shared if i == 2 else shared + sum(float(c[e]) * w.unit(x, f"{name}.experts.{e}", 16) for e in range(n))

    x = w("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1.0)[IDS]
    for i in range(4):
        name = f"model.layers.{i}."
        h = w.norm(x, name + "input_layernorm.weight")
        q, k, v = ((h @ w(f"{name}self_attn.{p}_proj.weight", HEADS * DIM, HIDDEN).T).reshape(len(IDS), HEADS, DIM) for p in "qkv")
        q = np.stack([rotate(r, t) for t, r in enumerate(q)])
        k = np.stack([rotate(r, t) for t, r in enumerate(k)])
        x = x + attend(q, k, v, DIM ** -0.5) @ w(name + "self_attn.o_proj.weight", HIDDEN, HEADS * DIM).T
        h = w.norm(x, name + "post_attention_layernorm.weight")
        x = x + np.stack([w.unit(r, name + "mlp", FF) if i < 1 else experts(r, i) for r in h])
    return finish("deepseek", w, x, config, IDS)


def coe(residual, routers, iterations, query_rank):
    """Chain-of-Experts on DeepSeek-V2: latent attention with YaRN, experts that run several times."""
    nope, rope, value, rank = 8, 4, 6, 10
    factor, m = 4.0, 0.707
    config = dict(BASE, model_type="coe_deepseekv2", num_key_value_heads=HEADS, n_routed_experts=6, n_shared_experts=1,
                  num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=0, moe_layer_freq=1, norm_topk_prob=False,
                  scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.5,
                  q_lora_rank=query_rank, kv_lora_rank=rank, qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=value,
                  rope_scaling=dict(type="yarn", factor=factor, original_max_position_embeddings=64, beta_fast=32, beta_slow=1,
                                    mscale=m, mscale_all_dim=m),
                  inner_iter=iterations, use_igate=routers, residual=residual)
    w = Weights()
    scale = (nope + rope) ** -0.5 * (0.1 * m * math.log(factor) + 1) ** 2

    def rotate(x, position):
        """Pairs of neighbours; frequencies between interpolation and extrapolation (YaRN)."""
        i = np.arange(rope // 2)
        own = 10000.0 ** (-2 * i / rope)
        turn = lambda r: rope * math.log(64 / (r * 2 * math.pi)) / (2 * math.log(10000.0))
        low, high = max(math.floor(turn(32)), 0), min(math.ceil(turn(1)), rope - 1)
        ramp = np.clip((i - low) / max(high - low, 0.001), 0, 1)
        angle = position * (own / factor * ramp + own * (1 - ramp))
        y = np.empty_like(x)
        y[:, 0::2] = x[:, 0::2] * np.cos(angle) - x[:, 1::2] * np.sin(angle)
        y[:, 1::2] = x[:, 1::2] * np.cos(angle) + x[:, 0::2] * np.sin(angle)
        return y

    x = w("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1.0)[IDS]
    for i in range(3):
        name, at = f"model.layers.{i}.mlp", f"model.layers.{i}.self_attn."
        h = w.norm(x, f"model.layers.{i}.input_layernorm.weight")
        source, q_name = h, "q_proj"
        if query_rank:
            source, q_name = w.norm(h @ w(at + "q_a_proj.weight", query_rank, HIDDEN).T, at + "q_a_layernorm.weight"), "q_b_proj"
        q = (source @ w(f"{at}{q_name}.weight", HEADS * (nope + rope), source.shape[1]).T).reshape(len(IDS), HEADS, nope + rope)
        both = h @ w(at + "kv_a_proj_with_mqa.weight", rank + rope, HIDDEN).T
        kv = w.norm(both[:, :rank], at + "kv_a_layernorm.weight") @ w(at + "kv_b_proj.weight", HEADS * (nope + value), rank).T
        kv = kv.reshape(len(IDS), HEADS, nope + value)
        q = np.concatenate([q[:, :, :nope], np.stack([rotate(r[:, nope:], t) for t, r in enumerate(q)])], 2)
        shared = np.stack([rotate(r[None, rank:], t) for t, r in enumerate(both)])
        k = np.concatenate([kv[:, :, :nope], np.repeat(shared, HEADS, 1)], 2)
        x = x + attend(q, k, kv[:, :, nope:], scale) @ w(at + "o_proj.weight", HIDDEN, HEADS * value).T
        first = u = w.norm(x, f"model.layers.{i}.post_attention_layernorm.weight")
        for t in range(iterations):
            router = f"{name}.gate.{t}.weight" if routers else f"{name}.gate.weight"
            y = np.stack([routed(w, r, name, router, 6, 2, 16, 1.5) + w.unit(r, name + ".shared_experts", 16) for r in u])
            u = u + y if residual in ("inner", "both") else first + y if residual == "addinit" else y
        x = x + u if residual in ("outer", "both") else u
    return finish("coe", w, x, config, IDS)


def elas(gate):
    """Llama with squared ReLU, of each four of whose results the two largest count (ELAS); with a gate or without."""
    config = dict(BASE, model_type="llama", num_key_value_heads=HEADS, hidden_act="relu2", fletch=dict(activation_sparsity="2:4"))
    w = Weights()

    def rotate(x, position):
        half = DIM // 2
        angle = position * 10000.0 ** (-np.arange(half) / half)
        a, b = x[:, :half], x[:, half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)

    def unit(x, name):
        y = w(name + ".up_proj.weight", FF, HIDDEN) @ x
        y = np.maximum(w(name + ".gate_proj.weight", FF, HIDDEN) @ x, 0) ** 2 * y if gate else np.maximum(y, 0) ** 2
        groups = y.reshape(-1, 4).copy()
        for g in groups:
            g[np.argsort(-abs(g), kind="stable")[2:]] = 0
        return w(name + ".down_proj.weight", HIDDEN, FF) @ groups.reshape(-1)

    x = w("model.embed_tokens.weight", VOCAB, HIDDEN, scale=1.0)[IDS]
    for i in range(3):
        name = f"model.layers.{i}."
        h = w.norm(x, name + "input_layernorm.weight")
        q, k, v = ((h @ w(f"{name}self_attn.{p}_proj.weight", HEADS * DIM, HIDDEN).T).reshape(len(IDS), HEADS, DIM) for p in "qkv")
        q = np.stack([rotate(r, t) for t, r in enumerate(q)])
        k = np.stack([rotate(r, t) for t, r in enumerate(k)])
        x = x + attend(q, k, v, DIM ** -0.5) @ w(name + "self_attn.o_proj.weight", HIDDEN, HEADS * DIM).T
        h = w.norm(x, name + "post_attention_layernorm.weight")
        x = x + np.stack([unit(r, name + "mlp") for r in h])
    return finish("elas", w, x, config, IDS)


WRITTEN = {
    "elas": lambda: elas(False),
    "elas-gated": lambda: elas(True),
    "llada2": llada2,
    "deepseek": lambda: deepseek(False),
    "cd-moe": lambda: deepseek(True),
    "coe-inner": lambda: coe("inner", True, 2, None),
    "coe-outer": lambda: coe("outer", False, 3, 12),
    "coe-addinit": lambda: coe("addinit", True, 2, None),
}


if __name__ == "__main__":
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    for key, settings in [*MODELS.items(), *((k, None) for k in WRITTEN)]:
        if len(sys.argv) > 2 and key not in sys.argv[2:]:
            continue
        data = WRITTEN[key]() if settings is None else build(key, settings)
        head = {k: data[k] for k in ("source", "config", "ids", "hidden") if k in data}
        with open(os.path.join(out, key + ".json"), "w") as f:
            text = json.dumps(head, indent=1)[:-2]
            text += ',\n "tensors": [\n' + ",\n".join("  " + json.dumps(t) for t in data["tensors"]) + "\n ],\n"
            text += ' "logits": [\n' + ",\n".join("  " + json.dumps(r) for r in data["logits"]) + "\n ]\n}\n"
            f.write(text)
        print(key, len(data["tensors"]), "tensors; largest logit", max(max(r) for r in data["logits"]))

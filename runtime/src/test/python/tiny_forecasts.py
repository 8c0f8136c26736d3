"""Logits of the tiny random Llama with forecasters and routers of the published shapes, computed with PyTorch.

    pip install torch transformers safetensors
    python tiny_forecasts.py > ../resources/io/fletch/runtime/engine/forecasts.json

Base model and stand-ins follow from the names of their tensors, as in tiny_models.py. Every unit has a router and a forecaster except
the attention of the last layer; a token is approximated where the router's second score is larger. Keys and values are computed for
every token. Each case also lists which tokens are approximated, unit by unit.
"""
import json, os, tempfile
import torch
from torch import nn
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from tiny_models import BASE, HIDDEN, LAYERS, VOCAB, checkpoint_names, spread, values

RANK, WIDTH, TOKENS = 6, 10, 20


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_layer = nn.Linear(HIDDEN, WIDTH)
        self.weight_predictor = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.weight_predictor(torch.relu(self.hidden_layer(x)))


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear1 = nn.Linear(HIDDEN, RANK)
        self.linear2 = nn.Linear(RANK, HIDDEN)

    def forward(self, x, activation):
        x = self.linear1(x)
        return self.linear2(nn.functional.silu(x) if activation == "silu" else x)


class Units(nn.Module):
    def __init__(self, attention):
        super().__init__()
        if attention:
            self.router_attention, self.lw_attn = Router(), Forecaster()
        self.router_mlp, self.lw_mlp = Router(), Forecaster()


class StandIns(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Units(i < LAYERS - 1) for i in range(LAYERS))


def base():
    settings = dict(BASE, model_type="llama")
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config._attn_implementation = "eager"
    shapes = checkpoint_names(AutoModelForCausalLM.from_config(config))
    with tempfile.TemporaryDirectory() as d:
        state = {n: values(n, s, *spread(n, s, False)) for n, s in shapes.items()}
        save_file(state, os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
        config.save_pretrained(d)
        return AutoModelForCausalLM.from_pretrained(d, dtype=torch.float64, attn_implementation="eager").eval()


def run(model, units, ids, activation, router_input):
    x = model.model.embed_tokens(ids)
    at = torch.arange(TOKENS)[None]
    angles = model.model.rotary_emb(x, at)
    mask = torch.where(at[0][None, :] <= at[0][:, None], 0.0, -1e30)[None, None].to(x.dtype)
    routed = []
    for layer, extra in zip(model.model.layers, units.layers):
        for kind in ("attention", "mlp"):
            norm = layer.input_layernorm if kind == "attention" else layer.post_attention_layernorm
            h = norm(x)
            if kind == "attention":
                y = layer.self_attn(hidden_states=h, position_embeddings=angles, attention_mask=mask)[0]
            else:
                y = layer.mlp(h)
            if hasattr(extra, "router_" + kind):
                z = getattr(extra, "router_" + kind)(h if router_input == "normed" else x)[0]
                margin = (z[:, 0] - z[:, 1])
                assert margin.abs().min() > 1e-3, margin
                approximate = margin < 0
                routed.append([int(a) for a in approximate])
                forecast = getattr(extra, "lw_attn" if kind == "attention" else "lw_mlp")(h, activation)
                y = torch.where(approximate[None, :, None], forecast, y)
            x = x + y
    return routed, model.lm_head(model.model.norm(x))[0]


model = base()
units = StandIns()
tensors, state = [], {}
for name, old in units.state_dict().items():
    shape = list(old.shape)
    scale = 0.3 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5
    tensors.append(dict(name="model." + name, shape=shape, scale=scale, offset=0.0))
    state[name] = torch.from_numpy(values("model." + name, shape, scale, 0.0))
units.load_state_dict(state)
units.double()
ids = torch.tensor([[(i * i * 7 + 3 * i + 5) % VOCAB for i in range(TOKENS)]])
cases = []
with torch.no_grad():
    for activation, router_input in (("silu", "normed"), ("none", "normed"), ("silu", "residual")):
        routed, logits = run(model, units, ids, activation, router_input)
        cases.append(dict(activation=activation, router_input=router_input, routed=routed,
                          logits=[[round(float(v), 6) for v in row] for row in logits]))
print(json.dumps(dict(source=f"torch {torch.__version__}")).rstrip("}") + ",")
print(' "tensors": [\n' + ",\n".join("  " + json.dumps(t) for t in tensors) + "\n ],")
print(' "cases": [\n' + ",\n".join("  " + json.dumps(c) for c in cases) + "\n ]\n}")

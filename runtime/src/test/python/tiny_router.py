"""Scores of a small random router network of the published form, computed with PyTorch.

    pip install torch
    python tiny_router.py > ../resources/io/fletch/runtime/engine/router.json

The weights are not stored: they follow from the names of the tensors, as in tiny_models.py, and so do the inputs (`hidden.C` and
`logits.C` of case C, whose token is listed). Only widths, tensors and scores are.
"""
import json, sys
import torch
from torch import nn
from tiny_models import values

HIDDEN, VOCAB, TOP, INNER, WIDE, BLOCKS, CASES = 128, 1024, 100, 24, 56, 3, 12


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer_norm = nn.LayerNorm(INNER)
        self.mlp = nn.Sequential(nn.Linear(INNER, WIDE), nn.GELU(), nn.Dropout(0.1), nn.Linear(WIDE, INNER), nn.Dropout(0.1))

    def forward(self, x):
        return x + self.mlp(self.layer_norm(x))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_projection = nn.Linear(INNER, INNER)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.output_layer = nn.Sequential(nn.LayerNorm(INNER), nn.Linear(INNER, 1))

    def forward(self, x):
        x = self.input_projection(x)
        for block in self.blocks:
            x = block(x)
        return self.output_layer(x)


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embeddings = nn.Embedding(VOCAB, HIDDEN)
        self.logits_projection = nn.Linear(TOP, HIDDEN)
        self.combined_projection = nn.Linear(3 * HIDDEN, INNER)
        self.backbone = Backbone()

    def forward(self, hidden, token, top):
        parts = [hidden, self.token_embeddings(token), self.logits_projection(top)]
        return torch.sigmoid(self.backbone(self.combined_projection(torch.cat(parts, dim=-1))))


def spread(name, shape):
    if len(shape) == 1:
        return (0.3, 1.0) if name.endswith("weight") else (0.3, 0.0)
    return (1.0, 0.0) if "embeddings" in name else (1.5 / shape[-1] ** 0.5, 0.0)


router = Router().eval()
tensors, state = [], {}
for name, old in router.state_dict().items():
    shape = list(old.shape)
    scale, offset = spread(name, shape)
    tensors.append(dict(name=name, shape=shape, scale=scale, offset=offset))
    state[name] = torch.from_numpy(values(name, shape, scale, offset))
router.load_state_dict(state)
router.double()
cases = []
with torch.no_grad():
    for c in range(CASES):
        hidden = torch.from_numpy(values(f"hidden.{c}", [HIDDEN], 2.0, 0.0)).double()
        logits = torch.from_numpy(values(f"logits.{c}", [VOCAB], 3.0 + c, 0.5)).double()
        token = c * 97 % VOCAB
        score = router(hidden, torch.tensor(token), torch.topk(logits, TOP).values)
        cases.append(dict(token=token, spread=3.0 + c, score=round(score.item(), 9)))
print(json.dumps(dict(source=f"torch {torch.__version__}", hidden=HIDDEN, vocabulary=VOCAB)).rstrip("}") + ",")
print(' "tensors": [\n' + ",\n".join("  " + json.dumps(t) for t in tensors) + "\n ],")
print(' "cases": [\n' + ",\n".join("  " + json.dumps(c) for c in cases) + "\n ]\n}")

"""Test vectors of the shipped demo models, computed by an independent implementation in numpy.

    python3 demo_vectors.py ../../../../tools/src/main/resources/META-INF/fletch/demo \
        ../resources/io/fletch/runtime/engine

Reads the GGUF files, dequantizes to float64 and runs the plain textbook forward pass. Writes one
JSON per model: prompts, logits of some ids at some positions with the logarithm of the sum of
their exponentials, and (autoregressive models) the greedy continuation with its smallest margin.
"""
import json
import struct
import sys

import numpy as np

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read(path):
    data = open(path, "rb").read()
    at = 0

    def take(fmt):
        nonlocal at
        out = struct.unpack_from("<" + fmt, data, at)[0]
        at += struct.calcsize("<" + fmt)
        return out

    def text():
        nonlocal at
        n = take("Q")
        out = data[at : at + n]
        at += n
        return out

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            inner = take("I")
            return [value(inner) for _ in range(take("Q"))]
        return take(SCALARS[kind])

    assert take("I") == 0x46554747 and take("I") == 3
    tensors, keys = take("Q"), take("Q")
    meta = {}
    for _ in range(keys):
        key = text().decode()
        meta[key] = value(take("I"))
    infos = []
    for _ in range(tensors):
        name = text().decode()
        shape = [take("Q") for _ in range(take("I"))][::-1]
        infos.append((name, shape, take("I"), take("Q")))
    start = (at + 31) // 32 * 32
    out = {}
    for name, shape, kind, offset in infos:
        n = int(np.prod(shape))
        if kind == 0:
            v = np.frombuffer(data, "<f4", n, start + offset)
        elif kind == 1:
            v = np.frombuffer(data, "<f2", n, start + offset)
        elif kind == 8:
            blocks = np.frombuffer(data, [("d", "<f2"), ("q", "i1", 32)], n // 32, start + offset)
            v = blocks["d"].astype(np.float64)[:, None] * blocks["q"]
        else:
            raise ValueError(kind)
        out[name] = v.astype(np.float64).reshape(shape)
    return meta, out


class Model:
    def __init__(self, path):
        self.meta, self.w = read(path)
        self.arch = self.meta["general.architecture"].decode()
        self.causal = self.arch != "llada"
        get = lambda k: self.meta[self.arch + "." + k]
        self.layers = get("block_count")
        self.heads = get("attention.head_count")
        self.kv = get("attention.head_count_kv")
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.base = get("rope.freq_base")

    def norm(self, x, w):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * w

    def rope(self, x):
        n, _, d = x.shape
        angle = np.arange(n)[:, None] * self.base ** (-np.arange(0, d, 2) / d)
        c, s = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
        out = np.empty_like(x)
        if self.arch == "llada":
            a, b = x[..., 0::2], x[..., 1::2]
            out[..., 0::2], out[..., 1::2] = a * c - b * s, b * c + a * s
        else:
            a, b = x[..., : d // 2], x[..., d // 2 :]
            out[..., : d // 2], out[..., d // 2 :] = a * c - b * s, b * c + a * s
        return out

    def logits(self, ids):
        w, n = self.w, len(ids)
        x = w["token_embd.weight"][ids]
        for i in range(self.layers):
            t = lambda name: w["blk.%d.%s.weight" % (i, name)]
            h = self.norm(x, t("attn_norm"))
            q = (h @ t("attn_q").T).reshape(n, self.heads, -1)
            k = (h @ t("attn_k").T).reshape(n, self.kv, -1)
            v = (h @ t("attn_v").T).reshape(n, self.kv, -1)
            if "blk.%d.attn_q_norm.weight" % i in w:
                q, k = self.norm(q, t("attn_q_norm")), self.norm(k, t("attn_k_norm"))
            q, k = self.rope(q), self.rope(k)
            mixed = []
            for head in range(self.heads):
                kvh = head * self.kv // self.heads
                s = q[:, head] @ k[:, kvh].T / np.sqrt(q.shape[-1])
                if self.causal:
                    s = np.where(np.tril(np.ones((n, n), bool)), s, -np.inf)
                p = np.exp(s - s.max(-1, keepdims=True))
                mixed.append(p / p.sum(-1, keepdims=True) @ v[:, kvh])
            x = x + np.concatenate(mixed, -1) @ t("attn_output").T
            h = self.norm(x, t("ffn_norm"))
            g = h @ t("ffn_gate").T
            x = x + (g / (1 + np.exp(-g)) * (h @ t("ffn_up").T)) @ t("ffn_down").T
        out = w.get("output.weight", w["token_embd.weight"])
        return self.norm(x, w["output_norm.weight"]) @ out.T


# As the tokenizer encodes the chat template around three questions of the held-out set.
PROMPTS = json.load(open(sys.argv[0].replace("demo_vectors.py", "demo_prompts.json")))


def main(folder, target):
    for name in ("demo", "demo-small", "demo-diffusion"):
        model = Model("%s/%s.gguf" % (folder, name))
        rows = []
        for ids in PROMPTS:
            if not model.causal:
                ids = ids + [model.meta["tokenizer.ggml.mask_token_id"]] * 16
            logits = model.logits(ids)
            row = {"ids": ids, "positions": []}
            for p in (0, len(ids) // 2, len(ids) - 1):
                l = logits[p]
                some = sorted({int(l.argmax()), 0, 10, 50, 270, 512, 777, 1000, 1022})
                row["positions"].append(
                    {
                        "position": p,
                        "argmax": int(l.argmax()),
                        "maximum": round(float(np.abs(l).max()), 6),
                        "tokens": some,
                        "logits": [round(float(l[t]), 6) for t in some],
                        "logsumexp": round(float(l.max() + np.log(np.exp(l - l.max()).sum())), 6),
                    }
                )
            if model.causal:
                greedy, margin, end = [], np.inf, model.meta["tokenizer.ggml.eos_token_id"]
                while len(greedy) < 64 and (not greedy or greedy[-1] != end):
                    l = np.sort(model.logits(ids + greedy)[-1])
                    margin = min(margin, float(l[-1] - l[-2]))
                    greedy.append(int(model.logits(ids + greedy)[-1].argmax()))
                row["greedy"], row["margin"] = greedy, round(margin, 5)
            rows.append(row)
        with open("%s/%s.json" % (target, name), "w") as f:
            f.write('{"prompts": [\n' + ",\n".join(json.dumps(r) for r in rows) + "\n]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

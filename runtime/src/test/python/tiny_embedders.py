"""Tiny embedding models as folders, and the vectors that sentence-transformers computes with them.

    pip install torch transformers sentence-transformers gguf
    python tiny_embedders.py ../resources/io/fletch/runtime/engine/embedders

Writes a folder per model: the files of a checkpoint without model.safetensors, whose tensors (weights.json: name, shape, scale, offset)
follow from their names as in tiny_models.py, and expected.json: texts with token ids, their vectors, and the last hidden states.
Beside it the same model as one file, written with the package gguf in the form of llama.cpp's converter.
"""
import json, os, shutil, sys, tempfile
import gguf
import torch
import sentence_transformers
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
import tiny_models, wordpiece_vectors

HIDDEN, HEADS, DIM, FF, LAYERS, POSITIONS, TOKENS = 32, 4, 8, 48, 3, 64, 40
COMMON = dict(hidden_size=HIDDEN, num_attention_heads=HEADS, intermediate_size=FF, num_hidden_layers=LAYERS,
              max_position_embeddings=POSITIONS)
TEXTS = ["hello, world", "The quick brown fox jumps over the lazy dog.", "Vectors of similar sentences point the same way.", "",
         "Ein naïver Öltanker fährt über die Straße.", "人工智能 改变 世界。", "a", "query: what is a vector?", "x_1 = a*b + c/d - e%f;",
         "tokenization " * 30]


def byte_level():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    t.train_from_iterator(wordpiece_vectors.CORPUS, trainers.BpeTrainer(
        vocab_size=560, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    t.decoder = decoders.ByteLevel()
    return t


MODELS = {
    "bert": (dict(COMMON, model_type="bert", hidden_act="gelu"), "cls",
             lambda: wordpiece_vectors.build(True), dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")),
    "nomic-bert": (dict(COMMON, head_dim=DIM, model_type="nomic_bert", rope_parameters=dict(rope_type="default", rope_theta=1000.0)), "mean",
                   lambda: wordpiece_vectors.build(True), dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")),
    "qwen3": (dict(COMMON, head_dim=DIM, model_type="qwen3", num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-6,
                   rope_parameters=dict(rope_type="default", rope_theta=1000000.0)), "lasttoken",
              byte_level, dict(pad_token="<|endoftext|>", eos_token="<|endoftext|>")),
}


def write(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def build(name, out):
    settings, mode, tokenizer, special = MODELS[name]
    settings = dict(settings)
    kind = settings.pop("model_type")
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    t = tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=t, model_max_length=POSITIONS, **special).save_pretrained(out)
    config = AutoConfig.for_model(kind, vocab_size=t.get_vocab_size(), **settings)
    torch.manual_seed(0)
    shapes = tiny_models.checkpoint_names(AutoModel.from_config(config))
    tensors, state = [], {}
    for tensor, shape in sorted(shapes.items()):
        scale, offset = tiny_models.spread(tensor, shape, False)
        tensors.append(dict(name=tensor, shape=shape, scale=scale, offset=offset))
        state[tensor] = tiny_models.values(tensor, shape, scale, offset)
    config.architectures = [type(AutoModel.from_config(config)).__name__]
    config.save_pretrained(out)
    package = "sentence_transformers.models."
    write(out + "/modules.json", [
        dict(idx=0, name="0", path="", type=package + "Transformer"), dict(idx=1, name="1", path="1_Pooling", type=package + "Pooling"),
        dict(idx=2, name="2", path="2_Normalize", type=package + "Normalize")])
    write(out + "/1_Pooling/config.json", dict(
        word_embedding_dimension=HIDDEN, pooling_mode_cls_token=mode == "cls", pooling_mode_mean_tokens=mode == "mean",
        pooling_mode_max_tokens=False, pooling_mode_mean_sqrt_len_tokens=False, pooling_mode_lasttoken=mode == "lasttoken"))
    write(out + "/sentence_bert_config.json", dict(max_seq_length=TOKENS, do_lower_case=False))
    with tempfile.TemporaryDirectory() as d:
        shutil.copytree(out, d, dirs_exist_ok=True)
        save_file(state, os.path.join(d, "model.safetensors"), metadata={"format": "pt"})
        model = SentenceTransformer(d, device="cpu", model_kwargs=dict(dtype=torch.float32, attn_implementation="eager"))
        cases = []
        for text in TEXTS:
            ids = model.tokenizer(text, truncation=True, max_length=TOKENS)["input_ids"]
            vector = model.encode([text], normalize_embeddings=False)[0]
            states = model.encode([text], output_value="token_embeddings")[0]
            cases.append(dict(text=text, ids=ids, vector=[round(float(x), 7) for x in vector],
                              states=[[round(float(x), 5) for x in row] for row in states] if len(ids) < 12 else None))
    with open(out + "/weights.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(x) for x in tensors) + "\n]\n")
    with open(out + "/expected.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(x) for x in cases) + "\n]\n")
    write_gguf(name, out + ".gguf", t, state)
    print(name, len(tensors), "tensors, sentence-transformers", sentence_transformers.__version__)


STEMS = {
    "bert": {"embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd",
             "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "token_embd_norm",
             "encoder.layer.{}.attention.self.query": "blk.{}.attn_q", "encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
             "encoder.layer.{}.attention.self.value": "blk.{}.attn_v", "encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
             "encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm", "encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
             "encoder.layer.{}.output.dense": "blk.{}.ffn_down", "encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm"},
    "nomic-bert": {"embeddings.word_embeddings": "token_embd", "embeddings.token_type_embeddings": "token_types", "emb_ln": "token_embd_norm",
                   "encoder.layers.{}.attn.Wqkv": "blk.{}.attn_qkv", "encoder.layers.{}.attn.out_proj": "blk.{}.attn_output",
                   "encoder.layers.{}.norm1": "blk.{}.attn_output_norm", "encoder.layers.{}.mlp.fc11": "blk.{}.ffn_up",
                   "encoder.layers.{}.mlp.fc12": "blk.{}.ffn_gate", "encoder.layers.{}.mlp.fc2": "blk.{}.ffn_down",
                   "encoder.layers.{}.norm2": "blk.{}.layer_output_norm"},
    "qwen3": {"embed_tokens": "token_embd", "norm": "output_norm", "layers.{}.input_layernorm": "blk.{}.attn_norm",
              "layers.{}.self_attn.q_proj": "blk.{}.attn_q", "layers.{}.self_attn.k_proj": "blk.{}.attn_k",
              "layers.{}.self_attn.v_proj": "blk.{}.attn_v", "layers.{}.self_attn.o_proj": "blk.{}.attn_output",
              "layers.{}.self_attn.q_norm": "blk.{}.attn_q_norm", "layers.{}.self_attn.k_norm": "blk.{}.attn_k_norm",
              "layers.{}.post_attention_layernorm": "blk.{}.ffn_norm", "layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
              "layers.{}.mlp.up_proj": "blk.{}.ffn_up", "layers.{}.mlp.down_proj": "blk.{}.ffn_down"},
}


def write_gguf(name, path, tokenizer, state):
    w = gguf.GGUFWriter(path, name)
    w.add_name("tiny " + name)
    w.add_block_count(LAYERS)
    w.add_context_length(POSITIONS)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(FF)
    w.add_head_count(HEADS)
    spec = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    special = {t["content"] for t in json.loads(tokenizer.to_str())["added_tokens"]}
    types = [3 if t in special else 1 for t in tokens]
    if name == "qwen3":
        w.add_head_count_kv(2)
        w.add_key_length(DIM)
        w.add_value_length(DIM)
        w.add_layer_norm_rms_eps(1e-6)
        w.add_rope_freq_base(1000000.0)
        w.add_pooling_type(gguf.PoolingType.LAST)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in spec["merges"]])
        w.add_eos_token_id(0)
        w.add_add_bos_token(False)
        w.add_add_eos_token(True)
    else:
        w.add_layer_norm_eps(1e-12)
        w.add_causal_attention(False)
        w.add_pooling_type(gguf.PoolingType.CLS if name == "bert" else gguf.PoolingType.MEAN)
        if name == "nomic-bert":
            w.add_rope_freq_base(1000.0)
        w.add_token_type_count(2)
        w.add_tokenizer_model("bert")
        tokens = [t if t in special else t[2:] if t.startswith("##") else "\u2581" + t for t in tokens]
        for key, token in (("unk", "[UNK]"), ("sep", "[SEP]"), ("pad", "[PAD]"), ("bos", "[CLS]"), ("mask", "[MASK]")):
            getattr(w, f"add_{key}_token_id")(tokens.index(token))
    w.add_token_list(tokens)
    w.add_token_types(types)
    for hf, values in state.items():
        stem, suffix = hf.rsplit(".", 1)
        layer = next((p for p in stem.split(".") if p.isdigit()), "")
        template = ".".join("{}" if p.isdigit() else p for p in stem.split("."))
        if template in STEMS[name]:
            w.add_tensor(STEMS[name][template].format(layer) + "." + suffix, values)
        else:
            assert "pooler" in hf, hf
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    for name in MODELS:
        build(name, os.path.join(sys.argv[1], name))

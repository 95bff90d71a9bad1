#include "model-file.h"

#include "ggml.h"

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <map>

bool expert_tensor_name(const std::string & name, int32_t & block, std::string & kind) {
    if (name.rfind("blk.", 0) != 0) return false;
    char * end = nullptr;
    const long number = strtol(name.c_str() + 4, &end, 10);
    if (end == name.c_str() + 4 || number < 0 || number > 100000) return false;
    const std::string rest = end;
    for (const char * k : {"gate", "up", "down", "gate_up"}) {
        if (rest == std::string(".ffn_") + k + "_exps.weight") {
            block = int32_t(number);
            kind = k;
            return true;
        }
    }
    return false;
}

// What is no expert matrix but belongs to a way of using experts that the hook cannot follow.
static engine_status refuse_by_name(const gguf_tensor & t) {
    const auto has = [&](const char * part) { return t.name.find(part) != std::string::npos; };
    const auto refuse = [&](const char * why) { return status_error(ENGINE_MODEL_FORMAT, "%s: %s", t.name.c_str(), why); };
    if (has("_chexps.")) return refuse("chunked experts, a second set that each layer chooses from, are not supported");
    if (has(".ffn_gate_tid2eid")) return refuse("experts that are looked up by the token's id, not chosen by scores, are not supported");
    for (const char * one : {".ffn_gate.", ".ffn_up.", ".ffn_down."}) {
        const size_t at = t.name.find(one);
        if (at != std::string::npos && isdigit(t.name[at + strlen(one)])) {
            return refuse("one tensor per expert is a form that llama.cpp reads no more; convert the model again with a current one");
        }
    }
    if (has("_exps.") && t.dims == 3) {
        return refuse("an unknown kind of expert matrix; known are ffn_gate_exps, ffn_up_exps, ffn_down_exps and ffn_gate_up_exps");
    }
    return {};
}

// Integers and doubles hold no weights, Q8_1 and Q8_K only activations; llama.cpp ends the process when it multiplies by them.
static bool holds_weights(int32_t type) {
    const ggml_type t = ggml_type(type);
    return t == GGML_TYPE_F32 || t == GGML_TYPE_F16 || t == GGML_TYPE_BF16 || (ggml_is_quantized(t) && t != GGML_TYPE_Q8_1 && t != GGML_TYPE_Q8_K);
}

// Whether the graph normalises the selected weights, by architecture; those in neither list follow the file's
// expert_weights_norm. Read off llama.cpp's src/models; shown by `inspect` only: an opened engine looks at the graph.
static const char * const NORMALISING[] = {
    "arctic", "dbrx", "ernie4_5-moe", "gemma4", "gpt-oss", "granite", "granite_swa", "granitehybrid", "granitemoe", "grok", "hunyuan-moe",
    "kimi-linear", "lfm2moe", "llama", "llama-embed", "maple", "mellum", "mimo2", "minicpm", "minimax-01", "minimax-m2", "mistral3",
    "phimoe", "qwen35moe", "qwen3moe", "qwen3next", "qwen3vlmoe", "qwen4exp", "refact", "rnd1", "smallthinker",
};
static const char * const NOT_NORMALISING[] = {"deepseek", "jamba", "llada-moe", "llama4", "nomic-bert-moe", "olmoe", "qwen2moe"};

static bool normalises_weights(const gguf_header & h, const std::string & arch) {
    for (const char * a : NORMALISING) {
        if (arch == a) return true;
    }
    for (const char * a : NOT_NORMALISING) {
        if (arch == a) return false;
    }
    const int64_t * norm = gguf_find_integer(h, arch + ".expert_weights_norm");
    return norm && *norm != 0;
}

using matrices_by_kind = std::map<std::string, const gguf_tensor *>;

static engine_status check_shapes(int32_t block, const matrices_by_kind & m, int64_t experts) {
    for (const auto & [kind, t] : m) {
        if (!holds_weights(t->type)) {
            return status_error(ENGINE_MODEL_FORMAT, "%s: experts cannot be of type %s", t->name.c_str(), ggml_type_name(ggml_type(t->type)));
        }
        if (t->dims != 3 || t->ne[2] != experts) {
            return status_error(ENGINE_MODEL_FORMAT, "%s: expected %lld experts, found %lld", t->name.c_str(),
                                (long long) experts, (long long) (t->dims == 3 ? t->ne[2] : 0));
        }
    }
    const auto down = m.find("down"), up = m.find("up"), gate = m.find("gate"), both = m.find("gate_up");
    if (down == m.end() || (up == m.end() && both == m.end())) {
        return status_error(ENGINE_MODEL_FORMAT, "blk.%d: expert matrices are incomplete (down and up, or gate_up, are needed)", block);
    }
    const int64_t width = down->second->ne[0], outside = down->second->ne[1];
    for (const auto & [kind, t] : m) {
        if (kind == "down") continue;
        const int64_t rows = kind == "gate_up" ? 2 * width : width;
        if (t->ne[1] != rows || t->ne[0] != outside) {
            return status_error(ENGINE_MODEL_FORMAT, "%s: expected [%lld, %lld] per expert, found [%lld, %lld]", t->name.c_str(),
                                (long long) outside, (long long) rows, (long long) t->ne[0], (long long) t->ne[1]);
        }
    }
    if (gate != m.end() && up == m.end()) {
        return status_error(ENGINE_MODEL_FORMAT, "blk.%d: a gate matrix without an up matrix", block);
    }
    return {};
}

static engine_status read_top_k(const gguf_header & h, const std::string & key, model_info & info) {
    const auto found = h.values.find(key);
    int64_t k = 0;
    if (found != h.values.end() && found->second.kind == gguf_value::INTEGER) {
        k = found->second.integer;
    } else if (found != h.values.end() && !found->second.integers.empty()) {
        // 0 stands for a layer without experts.
        const std::vector<int64_t> & per_layer = found->second.integers;
        size_t first = 0;
        for (size_t i = 0; i < per_layer.size(); i++) {
            if (k == 0) first = i;
            if (per_layer[i] != 0 && k != 0 && per_layer[i] != k) {
                return status_error(ENGINE_MODEL_FORMAT, "%s: blk.%zu uses %lld experts a token, blk.%zu %lld; layers that differ in it are "
                                    "not supported", key.c_str(), first, (long long) k, i, (long long) per_layer[i]);
            }
            if (k == 0) k = per_layer[i];
        }
    }
    if (k < 1 || k > info.experts || k > 128) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: expected 1 to %d (at most 128), found %lld", key.c_str(), info.experts,
                            (long long) k);
    }
    info.top_k = int32_t(k);
    return {};
}

static engine_status read_metadata(const gguf_header & h, model_info & info) {
    const std::string * arch = gguf_find_text(h, "general.architecture");
    if (!arch || arch->empty()) return status_error(ENGINE_MODEL_FORMAT, "%s: general.architecture is missing", info.path.c_str());
    info.architecture = *arch;
    const std::string * name = gguf_find_text(h, "general.name");
    info.name = name ? *name : *arch;
    info.alignment = h.alignment;
    const int64_t * pack = gguf_find_integer(h, "moefleet.pack.version");
    // Checksums cover the header of one file, so they hold no more where the model was split.
    info.pack_version = pack && info.files.size() == 1 ? *pack : 0;

    const int64_t * layers = gguf_find_integer(h, *arch + ".block_count");
    if (!layers || *layers < 1 || *layers > 4096) {
        return status_error(ENGINE_MODEL_FORMAT, "%s.block_count: expected 1 to 4096, found %lld", arch->c_str(),
                            (long long) (layers ? *layers : 0));
    }
    info.layers = int32_t(*layers);
    const int64_t * context = gguf_find_integer(h, *arch + ".context_length");
    info.context_train = context ? *context : 0;
    const auto tokens = h.values.find("tokenizer.ggml.tokens");
    if (tokens == h.values.end() || tokens->second.kind != gguf_value::ARRAY || tokens->second.count == 0) {
        return status_error(ENGINE_MODEL_FORMAT, "%s: tokenizer.ggml.tokens is missing", info.path.c_str());
    }
    info.vocab = int64_t(tokens->second.count);

    const int64_t * experts = gguf_find_integer(h, *arch + ".expert_count");
    if (!experts && h.values.count(*arch + ".expert_count")) {
        return status_error(ENGINE_MODEL_FORMAT, "%s.expert_count: expected one number for all layers", arch->c_str());
    }
    if (!experts || *experts == 0) {
        return status_error(ENGINE_NOT_MOE, "%s: %s has no experts; this engine runs Mixture-of-Experts models", info.path.c_str(),
                            info.name.c_str());
    }
    if (*experts < 1 || *experts > 4096) {
        return status_error(ENGINE_MODEL_FORMAT, "%s.expert_count: expected 1 to 4096, found %lld", arch->c_str(), (long long) *experts);
    }
    info.experts = int32_t(*experts);
    return read_top_k(h, *arch + ".expert_used_count", info);
}

// What the hook will rank by, from the tensors beside the experts; an opened engine confirms it from the graph.
static void read_router(const gguf_header & h, model_info & info) {
    const int64_t * groups = gguf_find_integer(h, info.architecture + ".expert_group_count");
    bool selection_bias = groups && *groups > 1, gate_bias = false;
    for (const auto & t : h.tensors) {
        if (t.name.find(".exp_probs_b") != std::string::npos) selection_bias = true;
        if (t.name.find(".ffn_gate_inp.bias") != std::string::npos) gate_bias = true;
    }
    info.select_by = selection_bias ? SELECT_BY_SELECTION_SCORE : gate_bias ? SELECT_BY_LOGITS_BIASED : SELECT_BY_LOGITS;
    info.normalises_weights = normalises_weights(h, info.architecture);
}

engine_status model_file_read(const std::string & path, model_file & out) {
    out = model_file();
    out.info.path = path;
    engine_status status = gguf_header_read(path, out.header);
    if (!failed(status)) status = model_shards_read(path, out.header, out.info.files);
    if (failed(status)) return status;
    const gguf_header & h = out.header;
    model_info & info = out.info;
    info.file_bytes = h.file_bytes;
    status = read_metadata(h, info);
    if (failed(status)) return status;
    read_router(h, info);

    // Blocks past the trunk predict further tokens; the graph leaves them out, so the engine does as well.
    const int64_t * ahead = gguf_find_integer(h, info.architecture + ".nextn_predict_layers");
    const int64_t trunk = info.layers - (ahead && *ahead > 0 && *ahead < info.layers ? *ahead : 0);

    std::map<int32_t, matrices_by_kind> blocks;
    for (const auto & t : h.tensors) {
        info.tensors.push_back({t.name, int32_t(position_file(t.offset)), position_offset(t.offset), t.bytes, ggml_type_name(ggml_type(t.type)), {t.ne, t.ne + t.dims}});
        int32_t block = 0;
        std::string kind;
        if (!expert_tensor_name(t.name, block, kind)) {
            status = refuse_by_name(t);
            if (failed(status)) return status;
            info.dense_bytes += t.bytes;
        } else if (block >= info.layers) {
            return status_error(ENGINE_MODEL_FORMAT, "%s: the model has %d blocks", t.name.c_str(), info.layers);
        } else if (block < trunk) {
            blocks[block][kind] = &t;
        }
    }
    if (blocks.empty()) {
        return status_error(ENGINE_NOT_MOE, "%s: no tensor named blk.<n>.ffn_*_exps.weight", path.c_str());
    }
    for (const auto & [block, matrices] : blocks) {
        status = check_shapes(block, matrices, info.experts);
        if (failed(status)) return status;
        expert_layer layer;
        layer.block = block;
        for (const auto & [kind, t] : matrices) {
            layer.matrices.push_back({t->name, t->offset, t->row_bytes * uint64_t(t->ne[1])});
            layer.expert_bytes += layer.matrices.back().expert_bytes;
        }
        info.moe_layers.push_back(block);
        info.expert_bytes.push_back(layer.expert_bytes);
        info.token_cycle_bytes += layer.expert_bytes * uint64_t(info.top_k);
        out.layers.push_back(std::move(layer));
    }
    return {};
}

#include "tiny-model.h"

#include "check.h"
#include "llama-runtime.h"
#include "model-file.h"

#include "llama.h"

#include <cstring>
#include <memory>
#include <random>

namespace {

const int BYTE_TOKENS = 256, LETTER_TOKENS = 61;
const int CONTEXT = 128;


[[noreturn]] void give_up(const tiny_model & model, const std::string & what) {
    fprintf(stderr, "%s: %s\n", model.name.c_str(), what.c_str());
    exit(1);
}

tiny_pair count(const char * key, uint32_t n) { return {key, GGUF_TYPE_UINT32, double(n), {}}; }
tiny_pair real(const char * key, double n) { return {key, GGUF_TYPE_FLOAT32, n, {}}; }
tiny_pair flag(const char * key, bool n) { return {key, GGUF_TYPE_BOOL, double(n), {}}; }
tiny_pair list(const char * key, std::vector<uint32_t> n) { return {key, GGUF_TYPE_UINT32, 0, std::move(n)}; }

// What llama.cpp numbers its gates with.
const uint32_t BY_SOFTMAX = 1, BY_SIGMOID = 2;

void add_pair(gguf_context * g, const std::string & key, const tiny_pair & pair) {
    if (!pair.list.empty()) return gguf_set_arr_data(g, key.c_str(), GGUF_TYPE_UINT32, pair.list.data(), pair.list.size());
    if (pair.type == GGUF_TYPE_FLOAT32) return gguf_set_val_f32(g, key.c_str(), float(pair.number));
    if (pair.type == GGUF_TYPE_BOOL) return gguf_set_val_bool(g, key.c_str(), pair.number != 0);
    gguf_set_val_u32(g, key.c_str(), uint32_t(pair.number));
}

// A SentencePiece vocabulary: control tokens, one token per byte, some letters.
void add_vocabulary(gguf_context * g) {
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<int32_t> types = {2, 3, 3};
    for (int b = 0; b < BYTE_TOKENS; b++) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", b);
        tokens.push_back(name);
        types.push_back(6);
    }
    for (int i = 0; i < LETTER_TOKENS; i++) {
        tokens.push_back("\xe2\x96\x81" + std::string(1, char('a' + i % 26)) + std::string(1, char('a' + i / 26)));
        types.push_back(1);
    }
    std::vector<const char *> names;
    for (const auto & t : tokens) names.push_back(t.c_str());
    const std::vector<float> scores(tokens.size(), 0.0f);
    gguf_set_val_str(g, "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", names.data(), names.size());
    gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
    gguf_set_val_u32(g, "tokenizer.ggml.bos_token_id", 1);
    gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", 2);
    gguf_set_val_u32(g, "tokenizer.ggml.unknown_token_id", 0);
}

// `predicting`: whether the blocks past the trunk are declared as such.
gguf_ptr make_metadata(const tiny_model & model, bool predicting) {
    gguf_ptr g(gguf_init_empty());
    const std::string prefix = model.architecture + ".";
    gguf_set_val_str(g.get(), "general.architecture", model.architecture.c_str());
    gguf_set_val_str(g.get(), "general.name", model.name.c_str());
    const std::vector<tiny_pair> common = {
        count("block_count", uint32_t(model.layers + model.predicting_layers)), count("context_length", CONTEXT),
        count("embedding_length", uint32_t(model.width)), count("feed_forward_length", uint32_t(model.expert_width)),
        count("attention.head_count", 4), count("attention.head_count_kv", 2),
        real("attention.layer_norm_rms_epsilon", 1e-5), real("attention.layer_norm_epsilon", 1e-5),
        count("expert_count", uint32_t(model.experts)), count("expert_used_count", uint32_t(model.top_k)),
        count("expert_feed_forward_length", uint32_t(model.expert_width)),
    };
    for (const auto & pair : common) add_pair(g.get(), prefix + pair.key, pair);
    for (const auto & pair : model.pairs) {
        gguf_remove_key(g.get(), (prefix + pair.key).c_str());
        add_pair(g.get(), prefix + pair.key, pair);
    }
    if (predicting && model.predicting_layers) add_pair(g.get(), prefix + "nextn_predict_layers", count("", uint32_t(model.predicting_layers)));
    if (model.groups) {
        add_pair(g.get(), prefix + "expert_group_count", count("", uint32_t(model.groups)));
        add_pair(g.get(), prefix + "expert_group_used_count", count("", uint32_t(model.groups_used)));
    }
    add_vocabulary(g.get());
    return g;
}

// Lists a tensor without its shape.
void name_tensor(gguf_context * g, const std::string & name) {
    ggml_tensor t;
    memset(&t, 0, sizeof(t));
    t.type = GGML_TYPE_F32;
    for (int d = 0; d < GGML_MAX_DIMS; d++) {
        t.ne[d] = 1;
        t.nb[d] = sizeof(float);
    }
    ggml_set_name(&t, name.c_str());
    gguf_add_tensor(g, &t);
}

void note_wish(ggml_tensor * tensor, void * data) {
    std::vector<tiny_tensor> & wishes = *static_cast<std::vector<tiny_tensor> *>(data);
    for (const auto & t : wishes) {
        if (t.name == tensor->name) return;
    }
    wishes.push_back({tensor->name, std::vector<int64_t>(tensor->ne, tensor->ne + ggml_n_dims(tensor))});
}

// False where the library was told of another number of tensors than it wants; `more` is then what is missing.
bool ask_with(const tiny_model & model, gguf_context * metadata, std::vector<tiny_tensor> & out, int & more) {
    ggml_backend_dev_t no_devices[1] = {nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = no_devices;
    params.n_gpu_layers = 0;
    params.progress_callback = [](float, void *) { return true; };
    llama_runtime_errors();
    llama_model * empty = llama_model_init_from_user(metadata, note_wish, &out, params);
    if (empty) {
        llama_model_free(empty);
        return true;
    }
    const std::string error = llama_runtime_errors();
    const size_t at = error.find("expected ");
    int told = 0, wanted = 0;
    if (at == std::string::npos || sscanf(error.c_str() + at, "expected %d, got %d", &told, &wanted) != 2 || wanted <= told) give_up(model, error);
    more = wanted - told;
    return false;
}

std::vector<tiny_tensor> ask_for_tensors(const tiny_model & model) {
    // Blocks past the trunk are declared as part of it: llama.cpp does not describe what it skips.
    gguf_ptr metadata = make_metadata(model, false);
    name_tensor(metadata.get(), "output.weight");
    for (const auto & name : model.optional) {
        for (int i = 0; i < model.layers + model.predicting_layers; i++) name_tensor(metadata.get(), "blk." + std::to_string(i) + "." + name);
    }
    // The library checks how many tensors it was told of before it asks for their values.
    std::vector<tiny_tensor> wanted;
    int more = 0;
    if (!ask_with(model, metadata.get(), wanted, more)) {
        for (int i = 0; i < more; i++) name_tensor(metadata.get(), "unnamed." + std::to_string(i));
        if (!ask_with(model, metadata.get(), wanted, more)) give_up(model, "llama.cpp does not say which tensors it wants");
    }
    for (int i = 0; i < model.predicting_layers; i++) {
        const std::string block = "blk." + std::to_string(model.layers + i) + ".nextn.";
        wanted.push_back({block + "eh_proj.weight", {2 * model.width, model.width}});
        wanted.push_back({block + "enorm.weight", {model.width}});
        wanted.push_back({block + "hnorm.weight", {model.width}});
    }
    wanted.insert(wanted.end(), model.extra.begin(), model.extra.end());
    return wanted;
}

bool ends_with(const std::string & s, const char * end) {
    const size_t n = strlen(end);
    return s.size() >= n && s.compare(s.size() - n, n, end) == 0;
}

// Such that activations keep about their size from layer to layer, and the router's logits spread over several nats.
std::vector<float> random_values(const tiny_tensor & t, const tiny_model & model) {
    uint64_t seed = 1469598103934665603ull;  // FNV-1a
    for (const char c : model.name + t.name) seed = (seed ^ uint8_t(c)) * 1099511628211ull;
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    int64_t n = 1;
    for (const int64_t d : t.ne) n *= d;
    float mean = 0, deviation = 1 / std::sqrt(float(t.ne[0]));
    if (t.name.find("norm") != std::string::npos) mean = 1, deviation = 0.1f;
    if (ends_with(t.name, ".bias")) mean = 0, deviation = 0.1f;
    if (ends_with(t.name, ".scale")) mean = 1, deviation = 0.1f;
    if (ends_with(t.name, "rope_freqs.weight")) mean = 1, deviation = 0;
    if (ends_with(t.name, "token_embd.weight")) deviation = 1;
    if (ends_with(t.name, "ffn_gate_inp.weight")) deviation *= 1.5f;
    if (ends_with(t.name, "ffn_gate_inp.scale")) mean = std::sqrt(float(model.width));
    if (ends_with(t.name, "exp_probs_b.bias")) deviation = 0.2f;
    std::vector<float> values(static_cast<size_t>(n));
    for (auto & v : values) v = mean + deviation * normal(random);
    return values;
}

ggml_type type_of(const tiny_tensor & t, const tiny_model & model) {
    int32_t block;
    std::string kind;
    return expert_tensor_name(t.name, block, kind) ? model.expert_type : GGML_TYPE_F32;
}

// To find codes for these, the library first spends up to ten seconds on tables. Any code is valid, so they are random
// here, under one scale per block that keeps the values small: half precision in front or, in IQ1_M, in the upper four
// bits of its four words of scales.
bool is_slow_to_quantise(ggml_type type) {
    return type == GGML_TYPE_IQ1_S || type == GGML_TYPE_IQ1_M || type == GGML_TYPE_IQ2_XXS || type == GGML_TYPE_IQ2_XS || type == GGML_TYPE_IQ2_S;
}

void fill_with_codes(ggml_tensor * tensor, uint64_t seed) {
    std::mt19937_64 random(seed);
    char * data = static_cast<char *>(tensor->data);
    for (size_t i = 0; i < ggml_nbytes(tensor); i++) data[i] = char(random());
    const bool ternary = tensor->type == GGML_TYPE_IQ1_S || tensor->type == GGML_TYPE_IQ1_M;
    const uint16_t scale = ggml_fp32_to_fp16(ternary ? 0.01f : 0.0005f);
    for (size_t at = 0; at < ggml_nbytes(tensor); at += ggml_type_size(tensor->type)) {
        if (tensor->type != GGML_TYPE_IQ1_M) {
            memcpy(data + at, &scale, sizeof(scale));
            continue;
        }
        for (size_t word = 0; word < 4; word++) {
            char & upper = data[at + ggml_type_size(tensor->type) - 8 + 2 * word + 1];
            upper = char((uint8_t(upper) & 0x0f) | ((scale >> (4 * word)) & 0x0f) << 4);
        }
    }
}

void fill(ggml_tensor * tensor, const std::vector<float> & values) {
    if (is_slow_to_quantise(tensor->type)) return fill_with_codes(tensor, values.size());
    const std::vector<float> flat(size_t(tensor->ne[0]), 1.0f);
    ggml_quantize_chunk(tensor->type, values.data(), tensor->data, 0, ggml_nrows(tensor), tensor->ne[0], flat.data());
}

}  // namespace

void tiny_model_write(const tiny_model & model, const std::string & path) {
    REQUIRE_OK(llama_runtime_start());
    const std::vector<tiny_tensor> wanted = ask_for_tensors(model);
    size_t bytes = 0;
    for (const auto & t : wanted) {
        int64_t n = 1;
        for (const int64_t d : t.ne) n *= d;
        bytes += ggml_tensor_overhead() + size_t(n) * sizeof(float) + 64;
    }
    ggml_ptr tensors(ggml_init({bytes, nullptr, false}));
    gguf_ptr g = make_metadata(model, true);
    for (const auto & t : wanted) {
        const ggml_type type = type_of(t, model);
        if (t.ne[0] % ggml_blck_size(type) != 0) give_up(model, t.name + ": no whole number of blocks");
        ggml_tensor * tensor = ggml_new_tensor(tensors.get(), type, int(t.ne.size()), t.ne.data());
        ggml_set_name(tensor, t.name.c_str());
        fill(tensor, random_values(t, model));
        gguf_add_tensor(g.get(), tensor);
    }
    if (!gguf_write_to_file(g.get(), path.c_str(), false)) give_up(model, path + " could not be written");
}

tiny_model tiny_model_named(const std::string & name) {
    for (const auto & model : tiny_models()) {
        if (model.name == name) return model;
    }
    fprintf(stderr, "no tiny model is called %s\n", name.c_str());
    exit(1);
}

std::vector<tiny_model> tiny_models() {
    std::vector<tiny_model> all;
    const auto add = [&](const char * name, const char * architecture) -> tiny_model & {
        all.emplace_back();
        all.back().name = name;
        all.back().architecture = architecture;
        return all.back();
    };
    const auto with_selection_bias = [](tiny_model & m, tiny_gate gate) {
        m.gate = gate;
        m.select_by = SELECT_BY_SELECTION_SCORE;
        m.optional.push_back("exp_probs_b.bias");
    };
    {
        tiny_model & m = add("qwen2moe", "qwen2moe");
        m.optional = {"attn_q.bias", "attn_k.bias", "attn_v.bias"};
        m.pairs = {count("expert_shared_feed_forward_length", 96)};
    }
    add("qwen3moe", "qwen3moe").normalises = true;
    add("olmoe", "olmoe").pairs = {count("attention.head_count_kv", 4)};
    {
        tiny_model & m = add("mixtral", "llama");
        m.experts = 8;
        m.top_k = 2;
        m.normalises = true;
        m.optional = {"ffn_gate_exps.weight"};
    }
    {
        tiny_model & m = add("phimoe", "phimoe");
        m.top_k = 2;
        m.normalises = true;
    }
    {
        tiny_model & m = add("granitemoe", "granitemoe");
        m.normalises = true;
        m.optional = {"ffn_gate_exps.weight"};
        m.pairs = {real("logit_scale", 2), real("residual_scale", 0.5), real("embedding_scale", 3), real("attention.scale", 0.25),
                   count("expert_shared_feed_forward_length", 32)};
    }
    for (const bool grouped : {false, true}) {
        for (const tiny_gate gate : {GATE_SOFTMAX, GATE_SIGMOID}) {
            const std::string name = std::string("deepseek2-") + (gate == GATE_SOFTMAX ? "softmax" : "sigmoid") + (grouped ? "-groups" : "");
            tiny_model & m = add(name.c_str(), "deepseek2");
            m.gate = gate;
            m.pairs = {count("attention.head_count_kv", 1), count("attention.q_lora_rank", 32), count("attention.kv_lora_rank", 32),
                       count("attention.key_length", 48), count("attention.value_length", 32), count("attention.key_length_mla", 32),
                       count("attention.value_length_mla", 16), count("rope.dimension_count", 16), count("leading_dense_block_count", 1),
                       count("expert_shared_count", 1), real("expert_weights_scale", 2.5), flag("expert_weights_norm", gate == GATE_SIGMOID),
                       count("expert_gating_func", gate == GATE_SIGMOID ? BY_SIGMOID : BY_SOFTMAX)};
            m.normalises = gate == GATE_SIGMOID;
            m.moe_layers = {1, 2};
            if (grouped) m.optional = {"ffn_gate_up_exps.weight"};
            if (gate == GATE_SIGMOID) with_selection_bias(m, gate);
            if (grouped) {
                m.groups = 4;
                m.groups_used = 2;
                m.select_by = SELECT_BY_SELECTION_SCORE;
            }
        }
    }
    {
        tiny_model & m = add("gpt-oss", "gpt-oss");
        m.gate = GATE_LOGITS;
        m.select_by = SELECT_BY_LOGITS_BIASED;
        m.normalises = true;
        m.optional = {"attn_q.bias", "attn_k.bias", "attn_v.bias"};
        m.expert_type = GGML_TYPE_MXFP4;
        m.pairs = {count("attention.sliding_window", 8), count("attention.key_length", 16), count("attention.value_length", 16)};
    }
    {
        tiny_model & m = add("lfm2moe", "lfm2moe");
        with_selection_bias(m, GATE_SIGMOID);
        m.normalises = true;
        m.moe_layers = {1, 2};
        m.pairs = {count("shortconv.l_cache", 3), list("attention.head_count_kv", {0, 2, 0}), count("leading_dense_block_count", 1),
                   count("expert_gating_func", BY_SIGMOID)};
    }
    {
        tiny_model & m = add("glm4moe", "glm4moe");
        with_selection_bias(m, GATE_SIGMOID);
        m.normalises = true;
        m.moe_layers = {1, 2};
        m.predicting_layers = 1;
        m.pairs = {count("leading_dense_block_count", 1), count("expert_shared_count", 1), real("expert_weights_scale", 1.5),
                   flag("expert_weights_norm", true), count("expert_gating_func", BY_SIGMOID), count("rope.dimension_count", 8)};
    }
    {
        tiny_model & m = add("gemma4", "gemma4");
        m.normalises = true;
        m.optional = {"ffn_gate_inp.weight", "ffn_gate_up_exps.weight", "ffn_down_exps.scale", "attn_v.weight"};
        m.pairs = {count("embedding_length_per_layer_input", 0), count("attention.sliding_window", 8),
                   list("attention.sliding_window_pattern", {1, 1, 0}), count("attention.key_length", 16), count("attention.value_length", 16),
                   count("attention.key_length_swa", 16), count("attention.value_length_swa", 16)};
    }
    {
        tiny_model & m = add("deepseek", "deepseek");
        m.moe_layers = {1, 2};
        m.pairs = {count("attention.head_count_kv", 4), count("leading_dense_block_count", 1), count("expert_shared_count", 2),
                   real("expert_weights_scale", 1)};
    }
    {
        tiny_model & m = add("hunyuan-moe", "hunyuan-moe");
        m.normalises = true;
        m.pairs = {count("expert_shared_feed_forward_length", 96)};
    }
    {
        tiny_model & m = add("ernie4_5-moe", "ernie4_5-moe");
        with_selection_bias(m, GATE_SOFTMAX);
        m.normalises = true;
        m.moe_layers = {1, 2};
        m.optional.push_back("ffn_gate_exps.weight");
        m.pairs = {count("interleave_moe_layer_step", 1), count("leading_dense_block_count", 1), count("expert_shared_feed_forward_length", 32)};
    }
    {
        tiny_model & m = add("minimax-m2", "minimax-m2");
        with_selection_bias(m, GATE_SIGMOID);
        m.normalises = true;
        m.pairs = {count("expert_gating_func", BY_SIGMOID)};
    }
    {
        tiny_model & m = add("bailingmoe", "bailingmoe");
        m.normalises = true;
        m.pairs = {count("expert_shared_count", 1), flag("expert_weights_norm", true)};
    }
    {
        tiny_model & m = add("bailingmoe2", "bailingmoe2");
        with_selection_bias(m, GATE_SIGMOID);
        m.normalises = true;
        m.moe_layers = {1, 2};
        m.groups = 4;
        m.groups_used = 3;
        m.pairs = {count("leading_dense_block_count", 1), count("expert_shared_count", 1), real("expert_weights_scale", 2.5),
                   flag("expert_weights_norm", true), count("expert_gating_func", BY_SIGMOID)};
    }
    {
        tiny_model & m = add("dots1", "dots1");
        with_selection_bias(m, GATE_SIGMOID);
        m.moe_layers = {1, 2};
        m.pairs = {count("attention.head_count_kv", 4), count("leading_dense_block_count", 1), count("expert_shared_count", 1),
                   flag("expert_weights_norm", false), count("expert_gating_func", BY_SIGMOID)};
    }
    for (const tiny_gate gate : {GATE_SOFTMAX, GATE_SIGMOID}) {
        tiny_model & m = add(gate == GATE_SOFTMAX ? "smallthinker-softmax" : "smallthinker-sigmoid", "smallthinker");
        m.gate = gate;
        m.normalises = true;
        m.pairs = {count("expert_gating_func", gate == GATE_SIGMOID ? BY_SIGMOID : BY_SOFTMAX)};
    }
    {
        tiny_model & m = add("afmoe", "afmoe");
        with_selection_bias(m, GATE_SIGMOID);
        m.normalises = true;
        m.moe_layers = {1, 2};
        m.pairs = {count("leading_dense_block_count", 1), count("expert_shared_count", 1), flag("expert_weights_norm", true),
                   real("expert_weights_scale", 2.8), count("attention.sliding_window", 8)};
    }
    {
        tiny_model & m = add("llama4", "llama4");
        m.gate = GATE_SIGMOID;
        m.layers = 4;
        m.top_k = 2;
        m.moe_layers = {1, 3};
        m.pairs = {count("interleave_moe_layer_step", 2)};
    }
    {
        tiny_model & m = add("grok", "grok");
        m.normalises = true;
        m.experts = 8;
        m.top_k = 2;
        m.optional = {"ffn_gate_exps.weight"};
        m.pairs = {count("attention.head_count_kv", 4)};
    }
    {
        tiny_model & m = add("dbrx", "dbrx");
        m.normalises = true;
        m.pairs = {real("attention.clamp_kqv", 8)};
    }
    {
        tiny_model & m = add("mimo2", "mimo2");
        with_selection_bias(m, GATE_SIGMOID);
        m.normalises = true;
        for (const char * name : {"ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"}) m.optional.push_back(name);
        m.pairs = {count("attention.sliding_window", 8), list("attention.sliding_window_pattern", {1, 1, 0})};
    }
    {
        tiny_model & m = add("exaone-moe", "exaone-moe");
        with_selection_bias(m, GATE_SIGMOID);
        m.layers = 4;
        m.normalises = true;
        m.moe_layers = {1, 2, 3};
        m.pairs = {count("attention.sliding_window", 8), count("leading_dense_block_count", 1), count("expert_shared_count", 1),
                   flag("expert_weights_norm", true), count("expert_gating_func", BY_SIGMOID)};
    }
    {
        tiny_model & m = add("laguna", "laguna");
        with_selection_bias(m, GATE_SIGMOID);
        m.normalises = true;
        m.moe_layers = {1, 2};
        m.pairs = {count("leading_dense_block_count", 1), count("expert_shared_count", 1), flag("expert_weights_norm", true),
                   count("expert_gating_func", BY_SIGMOID), count("expert_shared_feed_forward_length", 64)};
    }
    {
        tiny_model & m = add("cohere2moe", "cohere2moe");
        m.gate = GATE_SIGMOID;
        m.layers = 4;
        m.normalises = true;
        m.moe_layers = {1, 2, 3};
        m.pairs = {count("attention.sliding_window", 8), real("logit_scale", 0.5), count("leading_dense_block_count", 1), flag("expert_weights_norm", true)};
    }
    {
        tiny_model & m = add("hy_v3", "hy_v3");
        with_selection_bias(m, GATE_SIGMOID);
        m.normalises = true;
        for (const char * name : {"exp_probs_b", "ffn_gate_inp.weight", "ffn_gate_up_exps.weight", "ffn_down_exps.weight"}) m.optional.push_back(name);
        m.pairs = {flag("expert_weights_norm", true)};
    }
    {
        tiny_model & m = add("arctic", "arctic");
        m.normalises = true;
        m.pairs = {count("feed_forward_length", 64)};
    }
    {
        tiny_model & m = add("mellum", "mellum");
        m.normalises = true;
    }
    {
        tiny_model & m = add("qwen3vlmoe", "qwen3vlmoe");
        m.normalises = true;
        m.pairs = {list("rope.dimension_sections", {4, 2, 2, 0})};
    }
    return all;
}

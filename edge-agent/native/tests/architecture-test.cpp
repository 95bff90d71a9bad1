// Every way of routing that the engine takes, on tiny models with random weights: at lambda 0 the logits are the stock
// library's, byte for byte, at every capacity; under a pull the experts are those that the definitions in
// routing.h name (routing-definition.h); and the weights that the graph gathers are the gate's own, without the pull.
#include "routing-definition.h"
#include "stock-run.h"
#include "tiny-model.h"

#include <fcntl.h>
#include <map>
#include <numeric>

// What one layer's router did in one pass, row by row.
struct layer_sight {
    std::vector<floats> logits, gates, weights, normalised;
    std::vector<std::vector<int32_t>> own, chosen;
};

struct spy {
    layer_hook & hook;
    std::map<int, layer_sight> layers;  // by block
};

template <typename T> static std::vector<T> row_of(const ggml_tensor * t, int64_t row, int64_t n, size_t stride) {
    std::vector<T> out(static_cast<size_t>(n));
    memcpy(out.data(), static_cast<const char *>(t->data) + size_t(row) * stride, size_t(n) * sizeof(T));
    return out;
}

static bool is_node(const ggml_tensor * t, const char * stem) {
    const size_t n = strlen(stem);
    return strncmp(t->name, stem, n) == 0 && t->name[n] == '-' && strchr(t->name, ' ') == nullptr;
}

// Looks at the router's nodes before and after the engine's hook.
static bool spy_eval(ggml_tensor * t, bool ask, void * data) {
    spy & s = *static_cast<spy *>(data);
    const bool logits = is_node(t, "ffn_moe_logits"), gates = is_node(t, "ffn_moe_probs"), topk = is_node(t, "ffn_moe_topk");
    const bool weights = is_node(t, "ffn_moe_weights");
    const bool normalised = is_node(t, "ffn_moe_weights_norm") || is_node(t, "ffn_moe_weights_softmax");
    const bool watched = logits || gates || topk || weights || normalised;
    const bool hooked = layer_hook_eval(t, true, &s.hook);
    if (ask) return watched || hooked;
    if (!watched) return hooked ? layer_hook_eval(t, false, &s.hook) : true;
    layer_sight & sight = s.layers[atoi(strrchr(t->name, '-') + 1)];
    if (topk) {
        for (int64_t r = 0; r < t->ne[1]; r++) sight.own.push_back(row_of<int32_t>(t, r, t->ne[0], t->nb[1]));
    }
    if (hooked) layer_hook_eval(t, false, &s.hook);
    if (topk) {
        for (int64_t r = 0; r < t->ne[1]; r++) sight.chosen.push_back(row_of<int32_t>(t, r, t->ne[0], t->nb[1]));
    }
    for (int64_t r = 0; logits && r < t->ne[1]; r++) sight.logits.push_back(row_of<float>(t, r, t->ne[0], t->nb[1]));
    for (int64_t r = 0; gates && r < t->ne[1]; r++) sight.gates.push_back(row_of<float>(t, r, t->ne[0], t->nb[1]));
    for (int64_t r = 0; weights && r < t->ne[2]; r++) sight.weights.push_back(row_of<float>(t, r, t->ne[1], t->nb[2]));
    const bool flat = t->ne[0] != 1;  // [K, rows] or [1, K, rows]
    for (int64_t r = 0; normalised && r < t->ne[flat ? 1 : 2]; r++) {
        sight.normalised.push_back(row_of<float>(t, r, t->ne[flat ? 0 : 1], t->nb[flat ? 1 : 2]));
    }
    return true;
}

static floats read_tensor(const model_file & file, const std::string & name) {
    for (const auto & t : file.header.tensors) {
        if (t.name != name) continue;
        floats out(t.bytes / sizeof(float));
        const int fd = open(file.info.path.c_str(), O_RDONLY);
        if (pread(fd, out.data(), t.bytes, off_t(t.offset)) != ssize_t(t.bytes)) exit(1);
        close(fd);
        return out;
    }
    return {};
}

static void check_weights(const tiny_model & model, const layer_sight & sight, size_t row, const expected_routing & expected) {
    std::vector<double> gates;
    const size_t kept = expected.chosen.size();
    for (size_t i = 0; i < size_t(model.top_k); i++) {
        const size_t e = size_t(expected.chosen[i < kept ? i : 0]);
        if (i < kept) {
            CHECK_EQUAL(sight.weights[row][i], sight.gates[row][e]);  // the very value of the unbiased gate
            CHECK_NEAR(sight.weights[row][i], expected.gates[e], 1e-5 * (1 + std::fabs(expected.gates[e])));
            gates.push_back(expected.gates[e]);
        } else if (model.gate == GATE_LOGITS) {
            CHECK_EQUAL(sight.weights[row][i], -INFINITY);
        } else {
            CHECK_EQUAL(sight.weights[row][i], 0);
        }
    }
    CHECK_EQUAL(sight.normalised.empty(), !model.normalises);
    if (!model.normalises) return;
    double total = 0;
    for (const double g : gates) total += g;
    const std::vector<double> over_selected = softmax(gates);
    for (size_t i = 0; i < size_t(model.top_k); i++) {
        const double weight = i >= kept ? 0 : model.gate == GATE_LOGITS ? over_selected[i] : gates[i] / total;
        CHECK_NEAR(sight.normalised[row][i], weight, 1e-5);
    }
}

struct tally {
    int events = 0, swaps = 0, dropped = 0;
};

static void check_pass(const tiny_model & model, const engine_spec & spec, std::map<int, reference_layer> & reference, spy & s, tally & sum) {
    for (auto & [block, sight] : s.layers) {
        reference_layer & layer = reference.at(block);
        // Some models route all tokens before their last layer leaves out those without output; the last token has one.
        CHECK(sight.logits.size() >= sight.chosen.size());
        sight.logits.erase(sight.logits.begin(), sight.logits.end() - long(sight.chosen.size()));
        for (size_t row = 0; row < sight.logits.size(); row++) {
            const expected_routing expected = route_by_definition(model, spec, layer, sight.logits[row]);
            const std::vector<int32_t> own(expected.ranking.begin(), expected.ranking.begin() + model.top_k);
            CHECK(sight.own[row] == own);
            std::vector<int32_t> chosen = expected.chosen;
            chosen.resize(size_t(model.top_k), chosen[0]);
            CHECK(sight.chosen[row] == chosen);
            check_weights(model, sight, row, expected);
            sum.events++;
            sum.dropped += model.top_k - int(expected.chosen.size());
            for (const int32_t e : expected.chosen) sum.swaps += std::find(own.begin(), own.end(), e) == own.end();
        }
    }
}

static void follows_the_definition(const tiny_model & model, const model_file & file, engine * e, const engine_spec & spec, const char * what) {
    REQUIRE_OK(engine_apply(e, spec));
    REQUIRE_OK(engine_drop_cache(e));
    std::map<int, reference_layer> reference;
    for (const int32_t block : file.info.moe_layers) {
        const std::string prefix = "blk." + std::to_string(block) + ".";
        reference[block].router_bias = read_tensor(file, prefix + "ffn_gate_inp.bias");
        reference[block].selection_bias = read_tensor(file, prefix + "exp_probs_b.bias");
        if (reference[block].selection_bias.empty()) reference[block].selection_bias = read_tensor(file, prefix + "exp_probs_b");
    }
    spy s{e->hook, {}};
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = cp.n_batch = cp.n_ubatch = 128;
    cp.n_threads = cp.n_threads_batch = 1;
    cp.op_offload = false;
    cp.cb_eval = spy_eval;
    cp.cb_eval_user_data = &s;
    cp.abort_callback = layer_hook_abort;
    cp.abort_callback_data = &e->hook;
    llama_context * context = llama_init_from_model(e->model, cp);
    engine_spec unbiased = spec;
    unbiased.routing = ROUTING_ORIGINAL;
    tally prefill, decode;
    const int before = checks_failed;
    run_passes(*e, context, 3 * DECODED, [&](int pass, const floats & logits) {
        if (pass == 0) check_pass(model, unbiased, reference, s, prefill);
        else check_pass(model, spec, reference, s, decode);
        s.layers.clear();
        return (likeliest(logits) + 37 * pass) % 320;  // no model of random weights writes on for long by itself
    });
    llama_free(context);
    CHECK_EQUAL(decode.events, 3 * DECODED * int(file.info.moe_layers.size()));
    if (spec.routing == ROUTING_PRUNED) CHECK(decode.dropped > 0);
    else CHECK(decode.swaps > 0);
    if (checks_failed != before) fprintf(stderr, "%s: %s at capacity %d is not what the definition says\n", model.name.c_str(), what, spec.capacities[0]);
}

static void selects_by_definition(const tiny_model & model, const std::string & path, engine * e) {
    model_file file;
    REQUIRE_OK(model_file_read(path, file));
    for (const int capacity : {model.top_k + 1, model.experts / 2}) {
        engine_spec spec = e->spec;
        std::fill(spec.capacities.begin(), spec.capacities.end(), capacity);
        spec.routing = ROUTING_CACHE_PRIOR;
        spec.lambda = 0.15;
        spec.top_j = 1;
        follows_the_definition(model, file, e, spec, "cache_prior");
        spec.lambda = 0.7;
        spec.top_j = 0;
        follows_the_definition(model, file, e, spec, "cache_prior");
        spec.routing = ROUTING_MAX_RANK;
        spec.top_j = 1;
        spec.max_rank = model.experts - 2;
        follows_the_definition(model, file, e, spec, "max_rank");
        spec.routing = ROUTING_CUMULATIVE_THRESHOLD;
        spec.mass_threshold = 0.9;
        follows_the_definition(model, file, e, spec, "cumulative_threshold");
        spec.routing = ROUTING_PRUNED;
        follows_the_definition(model, file, e, spec, "pruned");
    }
}

enum choosing { AT_STOPS, WITHIN, WITHIN_ALWAYS };

struct decoded_text {
    std::vector<floats> logits;
    std::vector<int64_t> misses;
    int within = 0;  // times that a layer chose within the graph
};

// The same text once more, as if no token had been routed before. At stops the engine knows no graph; within the graph it
// acts where it trusts to, or at every layer.
static decoded_text decode_choosing(engine * e, choosing how) {
    const auto prepare = [&] {
        if (how == AT_STOPS) graph_moments_init(e->hook.moments, e->layers.count);
        for (auto & layer : e->hook.moments.layers) layer.quiet = how == WITHIN_ALWAYS ? 1 << 20 : 0;
    };
    for (int l = 0; l < e->layers.count; l++) e->layers[l].range = range_mean();
    decoded_text out;
    prepare();
    run_passes(*e, e->context, DECODED, [&](int pass, const floats & logits) {
        out.logits.push_back(logits);
        out.misses.push_back(e->hook.outcome.misses);
        if (pass > 0) out.within += e->hook.moments.due_next;
        prepare();
        return (7 * pass + 11) % 320;
    });
    return out;
}

static bool decoded_the_same(const decoded_text & a, const decoded_text & b) {
    return a.misses == b.misses && std::equal(a.logits.begin(), a.logits.end(), b.logits.begin(), b.logits.end(), same_bytes);
}

static void fill_cache(engine * e) {
    const auto is_full = [&] {
        bool full = true;
        for (int l = 0; l < e->layers.count; l++) full = full && e->layers[l].cache.size == e->file.info.experts;
        return full;
    };
    for (int i = 0; i < 50 && !is_full(); i++) run_passes(*e, e->context, DECODED, [&](int pass, const floats &) { return (31 * pass + 17 * i) % 320; });
    CHECK(is_full());
}

// What is chosen, rewritten and read within the graph is what a stop would have chosen: with every expert a member, where
// it does not stop, another expert for each token's best, since nothing else differs from the model's own choice then; and
// with room for hardly more than a token's, though it would stop there, all that is missed.
static void chooses_within_the_graph_as_at_a_stop(engine * e) {
    engine_spec spec = e->spec;
    std::fill(spec.capacities.begin(), spec.capacities.end(), e->file.info.experts);
    spec.routing = ROUTING_SENSITIVITY;
    spec.rank = 1;
    spec.seed = 5;
    REQUIRE_OK(engine_apply(e, spec));
    REQUIRE_OK(engine_drop_cache(e));
    fill_cache(e);
    const decoded_text within = decode_choosing(e, WITHIN), at_stops = decode_choosing(e, AT_STOPS);
    CHECK_EQUAL(within.within, DECODED * e->layers.count);
    CHECK_EQUAL(at_stops.within, 0);
    CHECK(decoded_the_same(within, at_stops));
    spec.routing = ROUTING_ORIGINAL;
    REQUIRE_OK(engine_apply(e, spec));
    CHECK(!same_bytes(decode_choosing(e, WITHIN).logits.back(), within.logits.back()));

    std::fill(spec.capacities.begin(), spec.capacities.end(), e->file.info.top_k + 1);
    spec.routing = ROUTING_CACHE_PRIOR;
    spec.lambda = 0.3;
    REQUIRE_OK(engine_apply(e, spec));
    REQUIRE_OK(engine_drop_cache(e));
    const decoded_text missing = decode_choosing(e, WITHIN_ALWAYS);
    CHECK_EQUAL(missing.within, DECODED * e->layers.count);
    CHECK(std::accumulate(missing.misses.begin() + 1, missing.misses.end(), int64_t(0)) > 0);
    REQUIRE_OK(engine_drop_cache(e));
    CHECK(decoded_the_same(missing, decode_choosing(e, AT_STOPS)));
}

static void is_described_alike_before_and_after_opening(const tiny_model & model, const std::string & path, engine * e) {
    model_info before, after;
    REQUIRE_OK(engine_inspect(path, before));
    REQUIRE_OK(engine_get_info(e, after));
    for (const model_info * info : {&before, &after}) {
        CHECK_EQUAL(info->select_by, model.select_by);
        CHECK_EQUAL(info->normalises_weights, model.normalises);
        CHECK_EQUAL(info->experts, model.experts);
        CHECK_EQUAL(info->top_k, model.top_k);
        if (!model.moe_layers.empty()) CHECK(info->moe_layers == model.moe_layers);
        else CHECK_EQUAL(info->moe_layers.size(), size_t(model.layers));
    }
}

static std::string refusal_of(const tiny_model & model, const std::string & path) {
    tiny_model_write(model, path);
    engine_open_options options;
    options.model_path = path;
    options.spec.capacities.assign(size_t(model.layers), model.top_k);
    engine * e = nullptr;
    const engine_status status = engine_open(options, nullptr, nullptr, e);
    CHECK_EQUAL(status.code, ENGINE_MODEL_FORMAT);
    engine_free(e);
    return status.message;
}

static void is_refused(const tiny_model & model, const std::string & path, const char * because) {
    const std::string message = refusal_of(model, path);
    CHECK(message.find(because) != std::string::npos);
    if (message.find(because) == std::string::npos) fprintf(stderr, "%s: '%s' does not say '%s'\n", model.name.c_str(), message.c_str(), because);
}

static void names_what_it_cannot_route(const std::string & path) {
    tiny_model chunked = tiny_model_named("qwen3moe");
    chunked.name = chunked.architecture = "grovemoe";
    chunked.pairs = {{"expert_chunk_feed_forward_length", GGUF_TYPE_UINT32, 32, {}}, {"expert_group_scale", GGUF_TYPE_FLOAT32, 0.05, {}},
                     {"experts_per_group", GGUF_TYPE_UINT32, 2, {}}};
    is_refused(chunked, path, "blk.0.ffn_gate_chexps.weight: chunked experts");

    tiny_model uneven = tiny_model_named("qwen3moe");
    uneven.name = "uneven";
    uneven.pairs = {{"expert_used_count", GGUF_TYPE_UINT32, 0, {4, 4, 2}}};
    is_refused(uneven, path, "qwen3moe.expert_used_count: blk.0 uses 4 experts a token, blk.2 2");

    tiny_model by_token = tiny_model_named("qwen3moe");
    by_token.name = "by-token";
    by_token.extra = {{"blk.1.ffn_gate_tid2eid.weight", {4, 320}}};
    is_refused(by_token, path, "blk.1.ffn_gate_tid2eid.weight: experts that are looked up by the token's id");

    tiny_model apart = by_token;
    apart.name = "one-by-one";
    apart.extra = {{"blk.2.ffn_down.11.weight", {64, 64}}};
    is_refused(apart, path, "blk.2.ffn_down.11.weight: one tensor per expert");

    tiny_model unknown = by_token;
    unknown.name = "unknown-matrix";
    unknown.extra = {{"blk.2.ffn_side_exps.weight", {64, 64, 16}}};
    is_refused(unknown, path, "blk.2.ffn_side_exps.weight: an unknown kind of expert matrix");
}

int main(int argc, char ** argv) {
    temporary_folder folder;
    for (const tiny_model & model : tiny_models()) {
        if (argc > 1 && model.name != argv[1]) continue;
        const int before = checks_failed;
        const std::string path = folder.file((model.name + ".gguf").c_str());
        tiny_model_write(model, path);
        engine * e = open_at_least(path);
        is_described_alike_before_and_after_opening(model, path, e);
        equals_stock_llama_at_lambda_zero(path, e);
        selects_by_definition(model, path, e);
        chooses_within_the_graph_as_at_a_stop(e);
        engine_free(e);
        if (checks_failed != before) fprintf(stderr, "%s: %d checks failed\n", model.name.c_str(), checks_failed - before);
    }
    if (argc == 1) names_what_it_cannot_route(folder.file("refused.gguf"));
    return checks_done();
}

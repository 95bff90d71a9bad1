// What the hook costs: with every expert in memory, the engine, the same weights without a hook, the same stopping where the
// hook stops but doing nothing there, and the stock library on the mapped file; window by window in turns, in one process.
#include "stock-model.h"

#include "engine-state.h"
#include "llama-runtime.h"

#include <cstdio>
#include <cstring>

namespace {

int fail(const std::string & what) {
    fprintf(stderr, "%s\n", what.c_str());
    return 1;
}

struct free_engine { void operator()(engine * e) const { engine_free(e); } };
using open_engine = std::unique_ptr<engine, free_engine>;

// With room for every expert.
engine_status engine_with_all(const stock_options & o, open_engine & out, engine_spec & spec) {
    model_info info;
    engine_status status = engine_inspect(o.model, info);
    if (failed(status)) return status;
    spec.capacities.assign(info.moe_layers.size(), info.experts);
    engine_open_options options;
    options.model_path = o.model;
    options.context_tokens = o.context;
    options.threads = o.threads;
    options.direct_io = false;
    options.spec = spec;
    engine * e = nullptr;
    status = engine_open(options, nullptr, nullptr, e);
    out.reset(e);
    return status;
}

bool stop_at_routers(ggml_tensor * t, bool ask, void *) {
    return !ask || strncmp(t->name, "ffn_moe_logits-", 15) == 0 || strncmp(t->name, "ffn_moe_topk-", 13) == 0;
}

void print_times(const char * name, const std::vector<int64_t> & ns) {
    printf("\"%s\":[", name);
    for (size_t i = 0; i < ns.size(); i++) printf("%s%lld", i ? "," : "", (long long) ns[i]);
    printf("]");
}

struct stock_arm {
    const char * name;
    bool (*hook)(ggml_tensor *, bool ask, void *);
    bool mapped;                       // the file; otherwise the engine's weights, where it has read them
    stock_model stock;
    std::vector<int64_t> ns;
    std::vector<float> nll;

    bool decode_window(const stock_options & o) {
        stock_restart(stock);
        for (int32_t i = 0; i < o.tokens; i++) {
            stock_token token;
            if (!stock_decode_token(stock, size_t(i), token)) return false;
            ns.push_back(token.end_ns - token.start_ns);
            nll.push_back(token.nll);
        }
        return true;
    }
};

// Save for a window's last token, which is scored on another next one.
bool computed_the_same(const std::vector<float> & a, const std::vector<float> & b, int32_t tokens) {
    for (size_t i = 0; i < a.size(); i++) {
        if ((i + 1) % size_t(tokens) != 0 && a[i] != b[i]) return false;
    }
    return a.size() == b.size();
}

}  // namespace

int hook_overhead(const stock_options & o) {
    open_engine ours;
    evaluate_request request;
    engine_status status = engine_with_all(o, ours, request.spec);
    if (failed(status)) return fail(status.message);
    stock_arm arms[] = {{"unhooked", nullptr, false, {}, {}}, {"stops", stop_at_routers, false, {}, {}}, {"mapped", nullptr, true, {}, {}}};
    for (stock_arm & arm : arms) {
        stock_options options = o;
        options.hook = arm.hook;
        const std::string wrong = stock_open(options, arm.stock, arm.mapped ? nullptr : ours->model);
        if (!wrong.empty()) return fail(wrong);
    }

    request.context = o.tokens;
    request.stepped = true;
    const std::vector<llama_token> & text = arms[0].stock.tokens;
    for (int32_t pass = 0; pass < o.passes; pass++) request.tokens.insert(request.tokens.end(), text.begin(), text.end() - 1);
    request.tokens.push_back(text.back());
    // Between two windows of the engine the others decode theirs, each in every place. What the engine has read stays.
    const auto others = [&](int64_t done, int64_t) {
        for (int64_t i = 0; i < 3; i++) {
            if (!arms[(done / o.tokens + i) % 3].decode_window(o)) return false;
        }
        return true;
    };
    evaluate_result result;
    status = engine_evaluate(ours.get(), request, others, result);
    if (failed(status)) return fail(status.message);
    for (const stock_arm & arm : arms) {
        if (!computed_the_same(arm.nll, result.token_nll, o.tokens)) return fail(std::string(arm.name) + ": computed something else than the engine");
    }
    std::vector<int64_t> ns, misses;
    for (const evaluate_step & step : result.steps) {
        ns.push_back(step.end_ns - step.start_ns);
        misses.push_back(step.misses);
    }
    printf("{");
    print_times("engine", ns);
    for (const stock_arm & arm : arms) {
        printf(",");
        print_times(arm.name, arm.ns);
    }
    printf(",");
    print_times("misses", misses);
    printf("}\n");
    return 0;
}

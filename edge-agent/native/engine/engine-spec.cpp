// Specs: checking them and bringing them into force at a token boundary.
#include "engine-state.h"

#include <chrono>
#include <cmath>

static engine_status check_capacity(const model_info & info, size_t layer, int32_t capacity) {
    const int32_t block = info.moe_layers[layer];
    const unsigned long long bytes = info.expert_bytes[layer];
    if (capacity > info.experts) {
        return status_error(ENGINE_BAD_ARGUMENT, "capacity of blk.%d: at most the layer's %d experts, found %d", block, info.experts,
                            capacity);
    }
    if (capacity < info.top_k) {
        return status_error(ENGINE_CAPACITY,
                            "capacity %d of blk.%d is below the %d experts one token needs: %d x %llu = %llu bytes there, %llu given",
                            capacity, block, info.top_k, info.top_k, bytes, (unsigned long long) info.top_k * bytes,
                            (unsigned long long) (capacity > 0 ? capacity : 0) * bytes);
    }
    return {};
}

static engine_status check_capacities(const model_info & info, const std::vector<int32_t> & capacities) {
    if (capacities.size() != info.moe_layers.size()) {
        return status_error(ENGINE_BAD_ARGUMENT, "capacities: expected one per MoE layer (%zu), found %zu", info.moe_layers.size(),
                            capacities.size());
    }
    engine_status status;
    for (size_t i = 0; i < capacities.size() && !failed(status); i++) status = check_capacity(info, i, capacities[i]);
    return status;
}

static engine_status check_lambda(const char * what, double lambda) {
    if (lambda >= 0 && lambda <= 1) return {};
    return status_error(ENGINE_BAD_ARGUMENT, "%s: expected 0 to 1, found %g", what, lambda);
}

static engine_status check_top_j(const model_info & info, engine_routing routing, const char * what, int32_t top_j) {
    if (top_j < 0 || top_j > info.top_k) {
        return status_error(ENGINE_BAD_ARGUMENT, "%s: expected 0 to %d, found %d", what, info.top_k, top_j);
    }
    if (routing == ROUTING_PRUNED && top_j == 0) {
        return status_error(ENGINE_BAD_ARGUMENT, "%s: 'pruned' needs 1 or more, found 0: a token whose experts all miss would use none, "
                            "and an empty cache would stay empty", what);
    }
    return {};
}

// The lists that stand in for one value: empty, or one entry per MoE layer.
static engine_status check_layer_values(const model_info & info, const engine_spec & spec) {
    engine_status status = check_lambda("lambda", spec.lambda);
    if (!failed(status) && spec.top_js.empty()) status = check_top_j(info, spec.routing, "topJ", spec.top_j);
    if (!failed(status) && !spec.top_js.empty()) status = check_top_j(info, ROUTING_ORIGINAL, "topJ", spec.top_j);
    const size_t layers = info.moe_layers.size();
    if (!failed(status) && !spec.lambdas.empty() && spec.lambdas.size() != layers) {
        status = status_error(ENGINE_BAD_ARGUMENT, "lambdas: expected one per MoE layer (%zu), found %zu", layers, spec.lambdas.size());
    }
    if (!failed(status) && !spec.top_js.empty() && spec.top_js.size() != layers) {
        status = status_error(ENGINE_BAD_ARGUMENT, "topJs: expected one per MoE layer (%zu), found %zu", layers, spec.top_js.size());
    }
    for (size_t i = 0; i < spec.lambdas.size() && !failed(status); i++) status = check_lambda("lambdas", spec.lambdas[i]);
    for (size_t i = 0; i < spec.top_js.size() && !failed(status); i++) status = check_top_j(info, spec.routing, "topJs", spec.top_js[i]);
    return status;
}

// What one method alone reads is checked where that method is chosen.
static engine_status check_method(const model_info & info, const engine_spec & spec) {
    if (spec.routing == ROUTING_MAX_RANK && (spec.max_rank < info.top_k || spec.max_rank > info.experts)) {
        return status_error(ENGINE_BAD_ARGUMENT, "maxRank: expected %d (the model's own choice) to %d (any resident expert), found %d",
                            info.top_k, info.experts, spec.max_rank);
    }
    if (spec.routing == ROUTING_CUMULATIVE_THRESHOLD && !(spec.mass_threshold >= 0 && spec.mass_threshold <= 1)) {
        return status_error(ENGINE_BAD_ARGUMENT, "massThreshold: expected 0 (the model's own choice) to 1 (any resident expert), found %g",
                            spec.mass_threshold);
    }
    if (spec.routing == ROUTING_SENSITIVITY && (spec.rank < 1 || spec.rank > info.top_k)) {
        return status_error(ENGINE_BAD_ARGUMENT, "rank: expected 1 (a token's best expert) to %d, found %d", info.top_k, spec.rank);
    }
    if (spec.first_biased_layer < 0 || size_t(spec.first_biased_layer) > info.moe_layers.size()) {
        return status_error(ENGINE_BAD_ARGUMENT, "firstBiasedLayer: expected 0 to %zu MoE layers, found %d", info.moe_layers.size(),
                            spec.first_biased_layer);
    }
    return {};
}

engine_status engine_check_spec(const model_info & info, const engine_spec & spec) {
    engine_status status = check_layer_values(info, spec);
    if (!failed(status)) status = check_method(info, spec);
    if (failed(status)) return status;
    if (!std::isfinite(spec.generation)) return status_error(ENGINE_BAD_ARGUMENT, "generation: expected a number");
    if (spec.eviction == EVICT_BELADY) {
        return status_error(ENGINE_BAD_ARGUMENT, "eviction: 'belady' knows the future, which only a recorded run has; replay it");
    }
    if (!(spec.eviction_half_life >= 0) || !std::isfinite(spec.eviction_half_life)) {
        return status_error(ENGINE_BAD_ARGUMENT, "evictionHalfLifeTokens: expected 0 (uses do not age) or a number of tokens, found %g",
                            spec.eviction_half_life);
    }
    return check_capacities(info, spec.capacities);
}

// Here rather than at the first token, so that a spec that cannot be followed is refused while the old one is in force.
static engine_status check_graph(const layer_hook & hook, const engine_spec & spec) {
    for (const router_place & router : hook.routers) {
        if (spec.routing == ROUTING_PRUNED && router.weights[0] == 0) {
            return status_error(ENGINE_BAD_ARGUMENT, "routing: 'pruned' takes gate weights out by expert, and this model does not gather "
                                "them so; choose another routing");
        }
    }
    return {};
}

void engine_bound_held(engine & e, const engine_spec & spec) {
    const std::vector<uint64_t> & bytes = e.file.info.expert_bytes;
    int64_t most = spec.prefetch == PREFETCH_OFF ? 0 : prefetch_staging_bytes(e.hook.prefetch);
    for (size_t l = 0; l < bytes.size(); l++) most += spec.capacities[l] * int64_t(bytes[l]);
    expert_memory_set_most(e.memory, most);
}

// Whether as much is missed under both, so that pre-fetch is worth the same.
static bool misses_alike(const engine_spec & a, const engine_spec & b) {
    return a.routing == b.routing && a.lambda == b.lambda && a.top_j == b.top_j && a.lambdas == b.lambdas && a.top_js == b.top_js &&
           a.max_rank == b.max_rank && a.mass_threshold == b.mass_threshold && a.first_biased_layer == b.first_biased_layer &&
           a.eviction == b.eviction && a.capacities == b.capacities;
}

// Evicts what no longer fits. The caller holds the request slot, or the mutex while no request runs.
static void bring_into_force(engine & e, const engine_spec & spec) {
    warm_fill_yield(e.warm);  // it was sized for the room there was
    std::vector<int32_t> before = e.spec.capacities;
    cache_shrink_limit(e.shrink, before);
    if (before != spec.capacities) e.totals.resizes.add(1);
    if (!misses_alike(e.spec, spec)) prefetch_trial_renew(e.hook.prefetch.trial);
    e.spec = spec;
    if (spec.prefetch == PREFETCH_OFF) prefetch_drop(e.hook.prefetch);
    for (int l = 0; l < e.layers.count; l++) {
        expert_cache_evict_by(e.layers[l].cache, spec.eviction, spec.eviction_half_life);
    }
    cache_resize({&e.layers, &e.memory, e.options.keep_all, e.hook.evicted.data(), e.hook.changes}, spec.capacities);
    cache_shrink_clear(e.shrink);
    engine_bound_held(e, spec);
}

void engine_apply_pending_locked(engine & e) {
    if (e.applied_ticket == e.pending_ticket) return;
    bring_into_force(e, e.pending);
    e.applied_ticket = e.pending_ticket;
    e.spec_pending.store(false, std::memory_order_release);
    e.changed.notify_all();
}

void engine_apply_pending(engine & e) {
    if (!e.spec_pending.load(std::memory_order_acquire)) return;
    std::lock_guard<std::mutex> lock(e.mutex);
    engine_apply_pending_locked(e);
}

void engine_lend_cache(engine & e) {
    std::lock_guard<std::mutex> lock(e.mutex);
    engine_apply_pending_locked(e);
    e.spec_deferred = true;
    e.hook.shrink = nullptr;
    engine_empty_cache(e);
}

void engine_take_back_cache(engine & e) {
    std::lock_guard<std::mutex> lock(e.mutex);
    e.spec_deferred = false;
    e.hook.shrink = &e.shrink;
    engine_empty_cache(e);
    engine_spec spec = e.spec;
    cache_shrink_limit(e.shrink, spec.capacities);
    bring_into_force(e, spec);
}

engine_status engine_apply(engine * e, const engine_spec & spec) {
    std::unique_lock<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    engine_status status = engine_check_spec(e->file.info, spec);
    if (!failed(status)) status = check_graph(e->hook, spec);
    if (failed(status)) return status;
    if (!e->running) {
        bring_into_force(*e, spec);
        return {};
    }
    if (e->spec_deferred) {
        e->spec = spec;
        cache_shrink_clear(e->shrink);
        return {};
    }
    e->pending = spec;
    const uint64_t ticket = ++e->pending_ticket;
    e->spec_pending.store(true, std::memory_order_release);
    e->changed.wait(lock, [&] { return e->applied_ticket >= ticket || e->closed; });
    if (e->applied_ticket < ticket) return status_error(ENGINE_CLOSED, "the engine was closed before the spec came into force");
    return {};
}

engine_status engine_get_spec(engine * e, engine_spec & out) {
    std::lock_guard<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    out = e->spec;
    cache_shrink_limit(e->shrink, out.capacities);
    return {};
}

void engine_serve_shrink(engine & e) {
    if (!e.hook.shrink || !cache_shrink_waits(e.shrink)) return;
    warm_fill_yield(e.warm);
    layer_hook_shrink(e.hook);
}

engine_status engine_shrink(engine * e, const std::vector<int32_t> & capacities) {
    std::unique_lock<std::mutex> lock(e->mutex);
    if (e->closed) return status_error(ENGINE_CLOSED, "the engine is closed");
    const engine_status status = check_capacities(e->file.info, capacities);
    if (failed(status)) return status;
    e->totals.shrinks.add(1);
    const uint64_t ticket = cache_shrink_ask(e->shrink, capacities);
    // A spec that waits was asked for before this.
    if (e->applied_ticket != e->pending_ticket) cache_shrink_limit(e->shrink, e->pending.capacities);
    if (!e->running) engine_serve_shrink(*e);
    // The hook cannot ring a bell, as that would take a lock.
    while (e->shrink.served.load(std::memory_order_acquire) < ticket) {
        if (e->closed) return status_error(ENGINE_CLOSED, "the engine was closed before memory was given back");
        e->changed.wait_for(lock, std::chrono::milliseconds(1));
    }
    return {};
}

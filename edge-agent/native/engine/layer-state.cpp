#include "layer-state.h"

void layer_states_init(layer_states & states, int experts, const engine_spec & spec) {
    states.count = int(spec.capacities.size());
    states.of.reset(new layer_state[spec.capacities.size()]);
    for (int i = 0; i < states.count; i++) {
        expert_cache & cache = states[i].cache;
        expert_cache_init(cache, experts, spec.capacities[size_t(i)]);
        expert_cache_evict_by(cache, spec.eviction, spec.eviction_half_life);
        states[i].tally.capacity.set(cache.capacity);
        states[i].use.reset(new expert_use[size_t(experts)]);
    }
}

void layer_states_reset(layer_states & states) {
    for (int i = 0; i < states.count; i++) {
        expert_cache_reset(states[i].cache);
        states[i].range = range_mean();
        states[i].tally.resident.set(0);
        states[i].tally.range_mean.set(0);
    }
}

route_outcome layer_state_route(layer_state & state, int layer, const route_policy * policy, const reuse_scores & scores,
                                int32_t * ids, int k, int32_t * ranking, cache_event & event) {
    const float * z = scores.here;
    const int experts = state.cache.experts;
    route_outcome routed;
    routed.kept = k;
    if (z) range_mean_add(state.range, route_range(z, experts));
    if (z && policy) {
        const route_input in{z, experts, state.cache.resident.data(), range_mean_value(state.range), layer, state.range.tokens, ranking};
        routed = route_select(*policy, in, ids, k);
    }
    expert_cache_event(state.cache, ids, routed.kept, event, scores);
    return routed;
}

void layer_state_count(layer_state & state, const route_outcome & routed, const cache_event & event, int k) {
    state.tally.hits.add(event.hits);
    state.tally.misses.add(event.misses);
    state.tally.dropped.add(k - routed.kept);
    state.tally.swaps.add(routed.swaps);
    state.tally.mass_lost.add(routed.mass_lost);
    state.tally.events.add(1);
}

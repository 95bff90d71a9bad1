#include "layer-state.h"

void layer_states_init(layer_states & states, int experts, const engine_spec & spec) {
    states.count = int(spec.capacities.size());
    states.of.reset(new layer_state[spec.capacities.size()]);
    for (int i = 0; i < states.count; i++) {
        expert_cache & cache = states[i].cache;
        expert_cache_init(cache, experts, spec.capacities[size_t(i)]);
        expert_cache_evict_by(cache, spec.eviction, spec.eviction_half_life);
        states[i].tally.capacity.set(cache.capacity);
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

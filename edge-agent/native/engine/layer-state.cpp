#include "layer-state.h"

void layer_states_init(layer_states & states, int experts, const std::vector<int32_t> & capacities) {
    states.count = int(capacities.size());
    states.of.reset(new layer_state[capacities.size()]);
    for (int i = 0; i < states.count; i++) {
        expert_cache_init(states[i].cache, experts, capacities[size_t(i)]);
        states[i].tally.capacity.set(capacities[size_t(i)]);
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

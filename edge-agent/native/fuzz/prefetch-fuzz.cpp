// The reader of fitted maps (`.prefetch`) on any bytes, and guesses by whatever map it accepts.
#include "fuzz-input.h"

#include "prefetch.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

namespace {

enum { LAYERS = 3, EXPERTS = 20, INPUTS = 4, TOP_K = 4 };

void require(bool holds) {
    if (!holds) abort();
}

// The routers of a model, and a prefetcher without slots, so that nothing is read.
struct guessing_model {
    float weights[EXPERTS * INPUTS];
    ggml_tensor router = {};
    expert_memory memory;
    flash_reader reader;
    expert_reads reads;
    prefetcher prefetch;

    guessing_model() {
        for (int i = 0; i < EXPERTS * INPUTS; i++) weights[i] = float(i % 7) - 3;
        router.type = GGML_TYPE_F32;
        router.ne[0] = INPUTS;
        router.ne[1] = EXPERTS;
        router.ne[2] = router.ne[3] = 1;
        router.nb[0] = sizeof(float);
        router.nb[1] = INPUTS * sizeof(float);
        router.nb[2] = router.nb[3] = sizeof(weights);
        router.data = weights;
        memory.experts = EXPERTS;
        memory.layers.resize(LAYERS);
        reads.memory = &memory;
        reads.reader = &reader;
        prefetch_init(prefetch, reads, TOP_K, 0);
        router_forecast_init(prefetch.forecast, LAYERS, EXPERTS);
        for (auto & each : prefetch.forecast.routers) each.weights = &router;
        prefetch.forecast.inputs = INPUTS;
        prefetch_open(prefetch, "/proc/self/no-model");
    }
};

guessing_model & model() {
    static guessing_model m;
    return m;
}

fuzz_bytes map_of(float (*coefficient)(size_t)) {
    const router_forecast & forecast = model().prefetch.forecast;
    forecast_map map;
    map.layers = LAYERS;
    map.experts = EXPERTS;
    map.inputs = INPUTS;
    map.coefficients.resize(size_t(LAYERS - 1) * size_t(forecast_features(INPUTS, EXPERTS)) * EXPERTS);
    for (size_t i = 0; i < map.coefficients.size(); i++) map.coefficients[i] = coefficient(i);
    const std::string path = "/tmp/moefleet-fuzz-" + std::to_string(getpid()) + ".prefetch";
    require(!failed(forecast_map_write(path, map, forecast_fingerprint(forecast))));
    const fuzz_bytes out = fuzz_read(path);
    unlink(path.c_str());
    return out;
}

// Every token is foretold by what the map says, however wild; guesses stay absent experts, each once.
void guess(prefetcher & p) {
    const uint8_t resident[EXPERTS] = {1, 1, 0, 0, 1};
    const int32_t selected[TOP_K] = {0, 3, 7, EXPERTS - 1};
    float z[EXPERTS];
    for (int e = 0; e < EXPERTS; e++) z[e] = float(e) / 3;
    for (int token = 0; token < 2; token++) {
        for (int layer = 1; layer < LAYERS; layer++) {
            for (int i = 0; i < INPUTS; i++) p.input[size_t(i)] = float(i + layer) - 2;
            p.has_input = true;
            prefetch_note(p, layer - 1, z, selected, TOP_K);
            prefetch_guess(p, layer, {resident, 0.5, 2, 1});
            require(p.count <= p.most_guesses);
            uint8_t seen[EXPERTS] = {};
            for (int i = 0; i < p.count; i++) {
                const int32_t e = p.guesses[size_t(i)];
                require(e >= 0 && e < EXPERTS && !resident[e] && !seen[e]++);
                require(p.bins[size_t(i)] < MARGIN_BINS);
            }
            for (const float score : p.scores) require(!std::isnan(score));
            prefetch_settle(p, layer, selected, TOP_K);
        }
    }
}

}  // namespace

std::vector<fuzz_bytes> fuzz_seeds() {
    return {map_of([](size_t i) { return float(i % 11) / 10; }), map_of([](size_t i) { return i % 2 ? 3e38f : -3e38f; }), map_of([](size_t) { return 0.0f; })};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    prefetcher & p = model().prefetch;
    const engine_status status = forecast_map_read(fuzz_file(data, size), p.forecast, p.map);
    if (failed(status)) {
        require(p.map.coefficients.empty());
        return 0;
    }
    const size_t bytes = p.map.coefficients.size() * sizeof(float);
    require(p.map.layers == LAYERS && p.map.experts == EXPERTS && p.map.inputs == INPUTS && bytes > 0 && bytes < size);
    require(memcmp(p.map.coefficients.data(), data + size - bytes, bytes) == 0);
    guess(p);
    return 0;
}

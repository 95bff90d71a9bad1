// Chooses the next token from a row of logits. Scratch space is made once; choosing does not allocate.
#pragma once

#include <cstdint>
#include <vector>

struct sampler {
    double temperature = 0;   // 0: the likeliest token, the first of equals
    double top_p = 1;
    uint64_t state = 0;       // of the generator (splitmix64)
    std::vector<float> weight;
    std::vector<int32_t> heap;
};

void sampler_init(sampler & s, int vocab, double temperature, double top_p, uint64_t seed);
int32_t sampler_choose(sampler & s, const float * logits, int vocab);

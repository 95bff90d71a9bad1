#include "tensor-types.h"

#include <algorithm>
#include <cctype>

const std::vector<ggml_type> & quantised_types() {
    static const std::vector<ggml_type> types = [] {
        std::vector<ggml_type> all = {
            GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_K, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_K,
            GGML_TYPE_Q6_K, GGML_TYPE_Q8_0, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4};
        std::stable_sort(all.begin(), all.end(), [](ggml_type a, ggml_type b) { return type_bits(a) < type_bits(b); });
        return all;
    }();
    return types;
}

ggml_type quantised_type_named(const std::string & name) {
    std::string lower = name;
    for (auto & c : lower) c = char(std::tolower(static_cast<unsigned char>(c)));
    for (const ggml_type type : quantised_types()) {
        std::string known = ggml_type_name(type);
        for (auto & c : known) c = char(std::tolower(static_cast<unsigned char>(c)));
        if (known == lower) return type;
    }
    return GGML_TYPE_COUNT;
}

std::string quantised_types_for_rows(int64_t n) {
    std::string out;
    for (const ggml_type type : quantised_types()) {
        if (n % ggml_blck_size(type) == 0) out += (out.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }
    return out.empty() ? "none" : out;
}

bool type_can_be_written(ggml_type type) {
    if (type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 || type == GGML_TYPE_TQ1_0 || type == GGML_TYPE_TQ2_0) return true;
    const auto & types = quantised_types();
    return std::find(types.begin(), types.end(), type) != types.end();
}

double type_bits(ggml_type type) { return 8.0 * double(ggml_type_size(type)) / double(ggml_blck_size(type)); }

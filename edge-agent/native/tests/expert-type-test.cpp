// Every type of tensor that llama.cpp multiplies experts in loads, and at lambda 0 gives the stock library's logits byte
// for byte while the experts come and go.
#include "engine-fixture.h"
#include "stock-run.h"
#include "tiny-model.h"

static const ggml_type TYPES[] = {
    GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q1_0, GGML_TYPE_Q2_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ1_S,
    GGML_TYPE_IQ1_M, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_NL,
    GGML_TYPE_IQ4_XS, GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_MXFP4, GGML_TYPE_NVFP4,
};

// Types that hold tensors but no weights to multiply by: integers, doubles, and what activations are turned into.
static const ggml_type NO_WEIGHTS[] = {GGML_TYPE_Q8_1, GGML_TYPE_Q8_K, GGML_TYPE_I8, GGML_TYPE_I16, GGML_TYPE_I32, GGML_TYPE_I64, GGML_TYPE_F64};

static tiny_model model_of(ggml_type type) {
    tiny_model model = tiny_model_named("qwen3moe");
    model.name += std::string("-") + ggml_type_name(type);
    model.layers = 2;  // of the last one a prompt needs a single row
    model.experts = 6;
    model.top_k = 2;
    model.width = model.expert_width = 256;  // the longest blocks
    model.expert_type = type;
    return model;
}

// Rewrites the type in a tensor's description: name, number of dimensions, dimensions, type.
static void patch_type(const std::string & path, const std::string & tensor, ggml_type type) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const size_t at = bytes.find(tensor);
    if (at == std::string::npos) exit(1);
    const uint32_t number = uint32_t(type);
    file.clear();
    file.seekp(std::streamoff(at + tensor.size() + 4 + 3 * 8));
    file.write(reinterpret_cast<const char *>(&number), sizeof(number));
}

int main(int argc, char ** argv) {
    temporary_folder folder;
    const std::string path = folder.file("model.gguf");
    for (const ggml_type type : TYPES) {
        if (argc > 1 && strcmp(argv[1], ggml_type_name(type)) != 0) continue;
        const int before = checks_failed;
        tiny_model_write(model_of(type), path);
        engine * e = open_at_least(path);
        equals_stock_llama_at_lambda_zero(path, e);
        engine_free(e);
        if (checks_failed != before) fprintf(stderr, "%s: %d checks failed\n", ggml_type_name(type), checks_failed - before);
    }

    // What only says that it is of such a type, and is large enough for it, does not reach llama.cpp.
    tiny_model_write(model_of(GGML_TYPE_F32), path);
    for (const ggml_type type : NO_WEIGHTS) {
        patch_type(path, "blk.0.ffn_up_exps.weight", type);
        model_info info;
        const engine_status status = engine_inspect(path, info);
        CHECK_EQUAL(status.code, ENGINE_MODEL_FORMAT);
        if (ggml_row_size(type, 256) <= ggml_row_size(GGML_TYPE_F32, 256)) {
            CHECK(strstr(status.message, "blk.0.ffn_up_exps.weight: experts cannot be of type") != nullptr);
        }
    }

    // Both lists together are all that the library has.
    for (int t = 0; t < GGML_TYPE_COUNT; t++) {
        const bool listed = std::find(std::begin(TYPES), std::end(TYPES), t) != std::end(TYPES) ||
                            std::find(std::begin(NO_WEIGHTS), std::end(NO_WEIGHTS), t) != std::end(NO_WEIGHTS);
        CHECK_EQUAL(listed, ggml_blck_size(ggml_type(t)) > 0 && ggml_type_size(ggml_type(t)) > 0);
    }
    return checks_done();
}

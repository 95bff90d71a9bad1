#include "engine-fixture.h"
#include "model-file.h"
#include "tensor-types.h"

#include <cstring>

// The reference model with its experts as f16, since the repository has it in q8_0 alone.
static void write_f16(const std::string & path) {
    ggml_context * read = nullptr;
    const gguf_ptr source(gguf_init_from_file(MODEL, {false, &read}));
    const ggml_ptr tensors(read), wide(ggml_init({size_t(64) << 20, nullptr, false}));
    const gguf_ptr out(gguf_init_empty());
    gguf_set_kv(out.get(), source.get());
    for (int64_t i = 0; i < gguf_get_n_tensors(source.get()); i++) {
        ggml_tensor * t = ggml_get_tensor(tensors.get(), gguf_get_tensor_name(source.get(), i));
        int32_t block;
        std::string kind;
        if (!expert_tensor_name(t->name, block, kind)) {
            gguf_add_tensor(out.get(), t);
            continue;
        }
        ggml_tensor * f16 = ggml_new_tensor(wide.get(), GGML_TYPE_F16, 3, t->ne);
        ggml_set_name(f16, t->name);
        std::vector<float> row(size_t(t->ne[0]));
        for (int64_t r = 0; r < t->ne[1] * t->ne[2]; r++) {
            ggml_get_type_traits(t->type)->to_float(static_cast<char *>(t->data) + size_t(r) * t->nb[1], row.data(), t->ne[0]);
            ggml_fp32_to_fp16_row(row.data(), reinterpret_cast<ggml_fp16_t *>(static_cast<char *>(f16->data) + size_t(r) * f16->nb[1]), t->ne[0]);
        }
        gguf_add_tensor(out.get(), f16);
    }
    CHECK(gguf_write_to_file(out.get(), path.c_str(), false));
}

static quantize_options to_type(const char * type) {
    quantize_options o;
    o.type = type;
    o.threads = 2;
    return o;
}

static double cross_entropy(const std::string & path) {
    engine_open_options options = options_of(path, spec_of(0, 32));
    options.spec.routing = ROUTING_ORIGINAL;
    engine * e = open_engine(options);
    evaluate_request request;
    const std::vector<int32_t> text = text_tokens(e, "wikitext.txt", 4000);
    request.tokens.assign(text.begin(), text.begin() + 257);
    request.context = 256;
    request.spec = options.spec;
    evaluate_result result;
    REQUIRE_OK(engine_evaluate(e, request, nullptr, result));
    engine_free(e);
    return result.cross_entropy;
}

static std::vector<char> tensor_bytes(const std::string & path, const tensor_place & t) {
    std::ifstream in(path, std::ios::binary);
    std::vector<char> out(t.bytes);
    in.seekg(std::streamoff(t.offset)).read(out.data(), std::streamsize(out.size()));
    return out;
}

// Each type must come out as the library makes it, in the experts alone.
static void quantises_as_the_library_does(const std::string & f16, const std::string & path, const std::string & type, const std::string & down) {
    model_file before, after;
    REQUIRE_OK(model_file_read(f16, before));
    REQUIRE_OK(model_file_read(path, after));
    for (const auto & source : before.info.tensors) {
        const tensor_place * t = nullptr;
        for (const auto & each : after.info.tensors) if (each.name == source.name) t = &each;
        int32_t block;
        std::string kind;
        const std::vector<char> from = tensor_bytes(f16, source), to = tensor_bytes(path, *t);
        if (!expert_tensor_name(source.name, block, kind)) {
            CHECK(t->type == source.type && from == to);
            continue;
        }
        CHECK(t->type == (kind == "down" ? down : type));
        if (block != 4) continue;
        const size_t n = from.size() / 2;
        std::vector<float> values(n);
        std::vector<char> expected(to.size());
        ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t *>(from.data()), values.data(), int64_t(n));
        const int64_t row = source.shape[0];
        ggml_quantize_chunk(quantised_type_named(t->type), values.data(), expected.data(), 0, int64_t(n) / row, row, nullptr);
        CHECK(to == expected);
    }
}

static void quantises_every_type_that_fits(const temporary_folder & folder, const std::string & f16) {
    double last_error = 1;
    for (const char * type : {"q4_0", "iq4_nl", "q5_0", "Q5_1", "q8_0"}) {
        const std::string path = folder.file("quantised.gguf");
        quantize_result out;
        quantize_options options = to_type(type);
        options.replace = true;
        REQUIRE_OK(engine_quantize(f16, path, options, nullptr, out));
        quantises_as_the_library_does(f16, path, ggml_type_name(quantised_type_named(type)), ggml_type_name(quantised_type_named(type)));
        printf("%s: relative error %.4f, cross-entropy %.5f\n", type, out.relative_error, cross_entropy(path));
        CHECK(out.relative_error > 0 && out.relative_error < last_error);  // each of these is finer than the one before
        last_error = out.relative_error;
        CHECK(std::fabs(cross_entropy(path) - cross_entropy(f16)) < 0.1);
        check_result checked;
        REQUIRE_OK(engine_check(path, nullptr, checked));
        CHECK_EQUAL(checked.damaged_count, 0u);
    }
    CHECK(last_error < 0.001);  // what q8_0 held, q8_0 holds
}

static void names_what_does_not_fit(const temporary_folder & folder, const std::string & f16) {
    const std::string path = folder.file("none.gguf");
    quantize_result out;
    engine_status status = engine_quantize(f16, path, to_type("q4_K"), nullptr, out);
    CHECK_EQUAL(status.code, ENGINE_BAD_ARGUMENT);
    CHECK(strcmp(status.message, "blk.0.ffn_down_exps.weight: q4_K comes in blocks of 256 values, and its rows have 128; types that fit: "
                                 "mxfp4, q4_0, iq4_nl, q4_1, q5_0, q5_1, q8_0") == 0);
    for (const char * type : {"", "q8_1", "iq2_xxs", "f16", "nonsense"}) CHECK_EQUAL(engine_quantize(f16, path, to_type(type), nullptr, out).code, ENGINE_BAD_ARGUMENT);
    status = engine_quantize(MODEL, path, to_type("q4_0"), nullptr, out);
    CHECK_EQUAL(status.code, ENGINE_BAD_ARGUMENT);
    CHECK(strstr(status.message, "is quantised already (q8_0)") != nullptr);
    CHECK(access(path.c_str(), F_OK) != 0 && access((path + ".part").c_str(), F_OK) != 0);
    quantize_options options = to_type("q4_0");
    options.requantize = true;
    options.down_type = "q5_0";
    REQUIRE_OK(engine_quantize(MODEL, path, options, nullptr, out));
    model_file file;
    REQUIRE_OK(model_file_read(path, file));
    for (const auto & t : file.info.tensors) {
        int32_t block;
        std::string kind;
        if (expert_tensor_name(t.name, block, kind)) CHECK(t.type == (kind == "down" ? "q5_0" : "q4_0"));
    }
}

// Types whose blocks are too large for the reference model's rows are made of rows that are long enough.
static void makes_every_type_it_names() {
    std::vector<float> values(1024);
    for (size_t i = 0; i < values.size(); i++) values[i] = std::sin(float(i) * 0.37f) / 8;
    for (const ggml_type type : quantised_types()) {
        std::vector<char> bytes(ggml_row_size(type, 512) * 2);
        CHECK_EQUAL(ggml_quantize_chunk(type, values.data(), bytes.data(), 0, 2, 512, nullptr), bytes.size());
        std::vector<float> again(1024);
        ggml_get_type_traits(type)->to_float(bytes.data(), again.data(), 1024);
        double error = 0, power = 0;
        for (size_t i = 0; i < values.size(); i++) {
            error += (again[i] - values[i]) * (again[i] - values[i]);
            power += values[i] * values[i];
        }
        CHECK(error < 0.2 * power);
        CHECK(type_bits(type) >= 2 && type_bits(type) < 9);
    }
}

int main() {
    temporary_folder folder;
    std::string version;
    REQUIRE_OK(engine_version(version));
    const std::string f16 = folder.file("f16.gguf");
    write_f16(f16);
    makes_every_type_it_names();
    quantises_every_type_that_fits(folder, f16);
    names_what_does_not_fit(folder, f16);
    return checks_done();
}

#include "forecast-map.h"

#include "file-descriptor.h"
#include "file-read.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fcntl.h>
#include <sys/stat.h>

namespace {

const char MAGIC[8] = {'M', 'O', 'E', 'F', 'P', 'R', 'E', '1'};

struct map_header {
    char magic[8];
    uint32_t layers, experts, inputs, zero;
    uint64_t fingerprint;
};
static_assert(sizeof(map_header) == 32, "no padding");

engine_status not_a_map(const std::string & path, const char * why) {
    return status_error(ENGINE_MODEL_FORMAT, "%s: %s; make it again with moefleet model fit-prefetch, or remove it", path.c_str(), why);
}

}  // namespace

void forecast_features_fill(float * rest, int experts, const float * z, const int32_t * selected, int k, const float * previous) {
    float highest = -INFINITY, total = 0;
    for (int e = 0; e < experts; e++) highest = std::fmax(highest, z[e]);
    for (int e = 0; e < experts; e++) total += std::exp(z[e] - highest);
    std::fill(rest, rest + experts, 0.0f);
    for (int i = 0; i < k; i++) rest[selected[i]] = std::exp(z[selected[i]] - highest) / total;
    std::copy(previous, previous + experts, rest + experts);
    rest[2 * experts] = 1;
}

void forecast_map_apply(const float * coefficients, int64_t features, int experts, const float * x, float * scores) {
    std::fill(scores, scores + experts, 0.0f);
    for (int64_t i = 0; i < features; i++) {
        const float * row = coefficients + i * experts;
        if (x[i] == 0) continue;
        for (int e = 0; e < experts; e++) scores[e] += x[i] * row[e];
    }
}

// FNV-1a over the routers' bytes.
uint64_t forecast_fingerprint(const router_forecast & forecast) {
    uint64_t hash = 1469598103934665603ull;
    for (const auto & router : forecast.routers) {
        if (!router.weights) return 0;
        const auto * bytes = static_cast<const uint8_t *>(router.weights->data);
        for (size_t i = 0; i < ggml_nbytes(router.weights); i++) hash = (hash ^ bytes[i]) * 1099511628211ull;
    }
    return hash;
}

std::string forecast_map_path(const std::string & model_path) { return model_path + ".prefetch"; }

engine_status forecast_map_write(const std::string & path, const forecast_map & map, uint64_t fingerprint) {
    map_header header = {{}, uint32_t(map.layers), uint32_t(map.experts), uint32_t(map.inputs), 0, fingerprint};
    std::copy(MAGIC, MAGIC + 8, header.magic);
    const std::string part = path + ".part";
    FILE * file = fopen(part.c_str(), "wb");
    if (!file) return status_error(ENGINE_IO, "%s: %s", part.c_str(), strerror(errno));
    bool written = fwrite(&header, sizeof(header), 1, file) == 1;
    written = written && fwrite(map.coefficients.data(), sizeof(float), map.coefficients.size(), file) == map.coefficients.size();
    written = fclose(file) == 0 && written;
    if (written && rename(part.c_str(), path.c_str()) == 0) return {};
    const engine_status status = status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
    unlink(part.c_str());
    return status;
}

engine_status forecast_map_read(const std::string & path, const router_forecast & forecast, forecast_map & out) {
    out = forecast_map();
    const file_descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.fd < 0 && errno == ENOENT) return {};
    if (file.fd < 0) return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
    struct stat found = {};
    if (fstat(file.fd, &found) != 0) return status_error(ENGINE_IO, "%s: %s", path.c_str(), strerror(errno));
    if (!S_ISREG(found.st_mode)) return not_a_map(path, "not a file");
    map_header header;
    if (file_read(file.fd, &header, sizeof(header), 0) != 0 || !std::equal(MAGIC, MAGIC + 8, header.magic)) {
        return not_a_map(path, "not a pre-fetch map");
    }
    const bool fits = header.layers == forecast.routers.size() && int(header.experts) == forecast.experts && header.inputs == forecast.inputs;
    if (!fits || header.layers < 2 || header.fingerprint != forecast_fingerprint(forecast)) return not_a_map(path, "made for another model");
    // The shape is that of the open model, hence bounded.
    const uint64_t count = uint64_t(header.layers - 1) * uint64_t(forecast_features(header.inputs, int(header.experts))) * header.experts;
    if (uint64_t(found.st_size) != sizeof(header) + count * sizeof(float)) return not_a_map(path, "of the wrong length");
    std::vector<float> coefficients(count);
    const int error = file_read(file.fd, coefficients.data(), count * sizeof(float), sizeof(header));
    if (error) return file_read_failed(path, error);
    if (!std::all_of(coefficients.begin(), coefficients.end(), [](float c) { return std::isfinite(c); })) return not_a_map(path, "holds numbers that are not finite");
    out.layers = int(header.layers);
    out.experts = int(header.experts);
    out.inputs = header.inputs;
    out.coefficients = std::move(coefficients);
    return {};
}

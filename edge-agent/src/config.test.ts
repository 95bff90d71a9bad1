import { hostname } from 'node:os';
import { ConfigError, mergeSettings } from '@moefleet/runtime';
import { readConfig, SETTINGS } from './config';

const model = { MOEFLEET_MODEL: __filename };

test('needs no more than a model', () => {
  const config = readConfig(model);
  expect(config).toMatchObject({
    modelPath: __filename, coordinator: '127.0.0.1:7400', maxCacheBytes: null, maxLambda: 1, prefetch: 'off', directIo: true, http: { host: '127.0.0.1', port: 8400 },
    apiKey: null, maxWaiting: 16, otlpEndpoint: null, traceRatio: 1, memoryPressure: 'auto', memoryLowBytes: null, memoryStallPercent: 10,
  });
  expect(config.deviceId.slice(0, 3)).toBe(hostname().slice(0, 3));
  expect(config.stateFolder).toMatch(new RegExp(`/\\.local/state/moefleet/${config.deviceId}$`));
  expect(Object.isFrozen(config)).toBe(true);
});

test('flags win over the environment', () => {
  const merged = mergeSettings(SETTINGS, { model: __filename, maxCache: '8MiB', coordinator: 'none', otlpEndpoint: '' }, { MOEFLEET_MAX_CACHE: '1MiB', OTEL_EXPORTER_OTLP_ENDPOINT: 'http://x:1' });
  expect(readConfig(merged)).toMatchObject({ maxCacheBytes: 8 * 1024 ** 2, coordinator: null, otlpEndpoint: null });
});

test('takes addresses of both kinds', () => {
  expect(readConfig({ ...model, MOEFLEET_HTTP: '[::1]:0', MOEFLEET_COORDINATOR: '[::1]:7400' })).toMatchObject({ http: { host: '::1', port: 0 }, coordinator: '[::1]:7400' });
});

test.each([
  ['MOEFLEET_MODEL', '/nowhere/none.gguf'], ['MOEFLEET_MODEL', ''], ['MOEFLEET_DEVICE_ID', 'a b'], ['MOEFLEET_DEVICE_ID', '../x'], ['MOEFLEET_MAX_LAMBDA', '1.5'],
  ['MOEFLEET_MAX_CACHE', 'much'], ['MOEFLEET_HTTP', 'localhost'], ['MOEFLEET_HTTP', '127.0.0.1:70000'], ['MOEFLEET_COORDINATOR', 'host:0'],
  ['MOEFLEET_LABELS', 'nonsense'], ['MOEFLEET_PREFETCH', 'maybe'], ['OTEL_EXPORTER_OTLP_ENDPOINT', 'grpc://x'], ['MOEFLEET_LOG_LEVEL', 'loud'], ['MOEFLEET_TRACE_RATIO', '-1'], ['MOEFLEET_QUEUE', '1.5'],
  ['MOEFLEET_MEMORY_PRESSURE', 'maybe'], ['MOEFLEET_MEMORY_LOW', 'little'], ['MOEFLEET_MEMORY_STALL', '0'],
])('refuses %s="%s"', (name, value) => {
  expect(() => readConfig({ ...model, [name]: value })).toThrow(ConfigError);
  expect(() => readConfig({ ...model, [name]: value })).toThrow(value || '--model');
});

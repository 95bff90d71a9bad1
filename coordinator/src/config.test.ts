import { ConfigError } from '@moefleet/runtime';
import { readConfig } from './config';

test('keeps what devices fetch beside the rest of the fleet, unless told otherwise', () => {
  const folder = (env: Record<string, string>) => readConfig(env).artifactFolder;
  expect(folder({})).toBeNull();
  expect(folder({ MOEFLEET_TLS_DIR: '/fleet' })).toBe('/fleet/artifacts');
  expect(folder({ MOEFLEET_TLS_DIR: '/fleet', MOEFLEET_ARTIFACT_DIR: '/large' })).toBe('/large');
  expect(folder({ MOEFLEET_TLS_DIR: '/fleet', MOEFLEET_ARTIFACT_DIR: 'none' })).toBeNull();
});

test('has defaults for everything', () => {
  const config = readConfig({});
  expect(config).toMatchObject({ redis: { url: 'redis://127.0.0.1:6379', cluster: false, sentinel: '' }, redisPrefix: 'moefleet', gateway: { host: '127.0.0.1', port: 7400 }, learnEveryMs: 10_000, plaintextBeyondLoopback: false });
  expect(config.coordinatorId).toMatch(/^[A-Za-z0-9]/);
  expect(Object.isFrozen(config)).toBe(true);
});

test.each(['0.0.0.0:7400', '192.168.1.4:7400', '[::]:7400', 'example.org:7400'])('refuses to listen on %s in plaintext unless told so', (address) => {
  expect(() => readConfig({ MOEFLEET_GATEWAY_LISTEN: address })).toThrow(/MOEFLEET_GATEWAY_LISTEN.*--insecure-plaintext/);
  expect(readConfig({ MOEFLEET_GATEWAY_LISTEN: address, MOEFLEET_INSECURE_PLAINTEXT: 'true' }).plaintextBeyondLoopback).toBe(true);
});

test.each(['127.0.0.1:0', '[::1]:7400', 'localhost:65535'])('listens on %s', (address) => {
  expect(readConfig({ MOEFLEET_HTTP_LISTEN: address }).plaintextBeyondLoopback).toBe(false);
});

test.each([
  ['MOEFLEET_REDIS_URL', 'http://x'], ['MOEFLEET_REDIS_URL', 'nonsense'], ['MOEFLEET_REDIS_PREFIX', 'a{b}'], ['MOEFLEET_GATEWAY_LISTEN', '127.0.0.1'],
  ['MOEFLEET_GATEWAY_LISTEN', '127.0.0.1:99999'], ['MOEFLEET_LEARN_EVERY', '-1'], ['MOEFLEET_TELEMETRY_INTERVAL_MS', '1.5'], ['MOEFLEET_JAEGER_URL', 'ftp://x'],
  ['MOEFLEET_COORDINATOR_ID', 'a b'], ['MOEFLEET_LOG_LEVEL', 'loud'],
])('refuses %s=%s and names both', (name, value) => {
  expect(() => readConfig({ [name]: value })).toThrow(ConfigError);
  expect(() => readConfig({ [name]: value })).toThrow(`${name}: "${value}"`);
});

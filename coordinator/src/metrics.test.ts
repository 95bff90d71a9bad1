/**
 * /metrics by a strict reading of the text format: a promtool of our own, as small as what the coordinator writes needs.
 * NaN is taken in any case, as Prometheus does: a lag that was not measured since the last look is written as Nan.
 */
import { until } from '../../test/harness/ports';
import { startRedis, type TestRedis } from '../../test/harness/redis';
import { TestAgent } from './testing/test-agent';
import { call, change, startCoordinator, type TestCoordinator } from './testing/test-coordinator';

interface Family { type: string; help: string; samples: { name: string; labels: Record<string, string>; value: number }[] }

/** Throws at whatever Prometheus would refuse or promtool would complain of. */
function parseMetrics(text: string): Map<string, Family> {
  if (!text.endsWith('\n')) throw new Error('the last line has no end');
  const families = new Map<string, Family>();
  const seen = new Set<string>();
  let current = '';
  for (const line of text.split('\n').filter(Boolean)) {
    const comment = /^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line);
    if (comment) {
      const [, kind, name, rest] = comment;
      if (kind === 'HELP') {
        if (families.has(name!)) throw new Error(`${name!} comes twice`);
        families.set(name!, { type: '', help: rest!, samples: [] });
        current = name!;
      } else if (name !== current || !/^(counter|gauge|histogram|summary)$/.test(rest!)) throw new Error(`TYPE out of place: ${line}`);
      else families.get(name)!.type = rest!;
      continue;
    }
    const sample = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (-?(?:\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|\+Inf|-Inf|[Nn]a[Nn])$/.exec(line);
    if (!sample) throw new Error(`no sample: ${line}`);
    const [, name, labelText = '', value] = sample;
    const family = families.get(current)!;
    const own = family.type === 'histogram' ? [`${current}_bucket`, `${current}_sum`, `${current}_count`] : family.type === 'summary' ? [current, `${current}_sum`, `${current}_count`] : [current];
    if (!own.includes(name!)) throw new Error(`${name!} is not of ${current}`);
    if (seen.has(`${name!}{${labelText}}`)) throw new Error(`twice: ${line}`);
    seen.add(`${name!}{${labelText}}`);
    const labels = Object.fromEntries([...labelText.matchAll(/([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"/g)].map(([, label, text_]) => [label, text_]));
    family.samples.push({ name: name!, labels, value: Number(value!.replace('Inf', 'Infinity')) });
  }
  for (const [name, { type, samples }] of families) {
    if ((type === 'counter') !== name.endsWith('_total')) throw new Error(`${name} is a ${type}`);
    if (type !== 'histogram') continue;
    const series = (sample: { labels: Record<string, string> }) => JSON.stringify(Object.entries(sample.labels).filter(([label]) => label !== 'le').sort());
    for (const count of samples.filter((sample) => sample.name === `${name}_count`)) {
      const buckets = samples.filter((sample) => sample.name === `${name}_bucket` && series(sample) === series(count));
      buckets.reduce((before, { value }) => { if (value < before) throw new Error(`${name}: buckets fall`); return value; }, 0);
      if (buckets.at(-1)?.labels['le'] !== '+Inf' || buckets.at(-1)!.value !== count.value) throw new Error(`${name}: no +Inf bucket, or not of the count`);
    }
  }
  return families;
}

let redis: TestRedis;
let coordinator: TestCoordinator;
beforeAll(async () => {
  redis = await startRedis();
  coordinator = await startCoordinator(redis.url);
});
afterAll(async () => {
  await coordinator.close();
  await redis.close();
});

const metrics = async () => parseMetrics(await (await fetch(`${coordinator.http}/metrics`)).text());

test('is text that Prometheus takes, with what happened in it and no label that grows with the fleet', async () => {
  const agent = await TestAgent.join(coordinator.gateway, { id: 'a-device-of-the-fleet' });
  agent.telemetry({ decodeTokens: 1n });
  await change(coordinator.operator, { change: { $case: 'setLambda', value: { lambda: 0.5, topJ: undefined } } });
  await call(coordinator, 'getDevice', { deviceId: 'nobody' }).catch(() => {});
  const value = (families: Map<string, Family>, name: string, labels: Record<string, string> = {}) => families.get(name)?.samples.find((sample) => Object.entries(labels).every(([label, text]) => sample.labels[label] === text))?.value;
  await until('the frame is counted', async () => value(await metrics(), 'moefleet_coordinator_telemetry_frames_total', { outcome: 'counted' }) === 1, 5000, 20);
  const found = await metrics();
  expect(value(found, 'moefleet_coordinator_devices_online')).toBe(1);
  expect(value(found, 'moefleet_coordinator_desired_sent_total')).toBe(1);
  expect(found.get('moefleet_coordinator_desired_acknowledged_seconds')!.samples.find((sample) => sample.name.endsWith('_count'))!.value).toBe(1);
  expect(value(found, 'grpc_server_handled_total', { grpc_service: 'moefleet.v1.OperatorService', grpc_method: 'GetDevice', grpc_code: 'NOT_FOUND' })).toBe(1);
  expect(value(found, 'grpc_server_handled_total', { grpc_method: 'ChangeConfig', grpc_code: 'OK' })).toBe(1);
  expect(value(found, 'moefleet_coordinator_build_info')).toBe(1);
  expect(value(found, 'moefleet_coordinator_queue_length', { queue: 'hellos' })).toBe(0);
  expect(value(found, 'moefleet_coordinator_telemetry_interval_seconds')).toBe(1);
  expect(found.has('moefleet_coordinator_nodejs_eventloop_lag_p99_seconds')).toBe(true);
  expect(found.get('moefleet_coordinator_redis_command_seconds')!.samples.find((sample) => sample.name.endsWith('_count'))!.value).toBeGreaterThan(3);
  expect([...found.values()].flatMap(({ samples }) => samples).filter(({ labels }) => JSON.stringify(labels).includes('a-device-of'))).toEqual([]);
  agent.kill();
});

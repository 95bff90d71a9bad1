/** deploy/compose at work, as far as that goes without a container engine: its coordinators behind its balancer, watched by its Prometheus. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Child } from '../../services/demo/src/child-process';
import { CLI_PATH } from '../../services/demo/src/local-fleet';
import { findJaeger } from '../../services/demo/src/jaeger-binary';
import { OtlpCollector } from '../harness/otlp-collector';
import { MODEL } from '../harness/paths';
import { until } from '../harness/ports';
import { startRedis, type TestRedis } from '../harness/redis';
import { ServerSide } from '../harness/server-side';

const there = ['haproxy', 'prometheus', 'docker-compose'].every((program) => spawnSync('which', [program]).status === 0);
const jaeger = findJaeger();
const folder = mkdtempSync(join(tmpdir(), 'moefleet-server-side-'));
const coordinators = new Map<string, Child>();
let redis: TestRedis;
let server: ServerSide;

const moefleet = <T>(...args: string[]): T => JSON.parse(execFileSync(process.execPath, [CLI_PATH, ...args, '--json'], {
  encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'],
  env: { ...process.env, MOEFLEET_OPERATOR: `${server.address('balancer')}:7401`, MOEFLEET_CA: join(server.fleetFolder, 'ca.pem'), MOEFLEET_TOKEN_FILE: join(server.fleetFolder, 'moefleet-admin.token') },
})) as T;
const asked = async <T>(path: string) => ((await (await fetch(`http://${server.address('prometheus')}:9090/api/v1/${path}`)).json()) as { data: T }).data;
/** Whom the device is connected to, as Prometheus hears it. */
const holder = async () => {
  const { result } = await asked<{ result: { metric: { instance: string } }[] }>(`query?query=${encodeURIComponent('moefleet_coordinator_devices_online == 1')}`);
  return [...coordinators.keys()].find((name) => result[0]?.metric.instance === `${server.address(name)}:7402`);
};
const targets = async () => (await asked<{ activeTargets: { labels: Record<string, string>; health: string }[] }>('targets')).activeTargets.filter(({ labels }) => labels['job'] === 'moefleet-coordinator').map(({ health }) => health);

beforeAll(async () => {
  if (!there) return;
  redis = await startRedis();
  server = new ServerSide(folder, redis.url);
  server.initFleet();
  for (const name of ['coordinator-1', 'coordinator-2']) coordinators.set(name, await server.startCoordinator(name));
  await server.startBalancer();
  await server.startPrometheus();
});
afterAll(async () => {
  await server?.stop();
  await redis?.close();
  rmSync(folder, { recursive: true, force: true });
});

(there ? test : test.skip)('a device goes through the balancer to the other coordinator when its own is gone; Prometheus sees both, and tells of the loss', async () => {
  const token = await until('the operators\' API answers through the balancer', () => moefleet<{ secret: string }>('token', 'create').secret);
  const agent = server.start('agent', process.execPath, [CLI_PATH, 'agent', 'run', '--id', 'board', '--model', MODEL, '--max-cache', '4MiB', '--threads', '1', '--memory-pressure', 'off',
    '--state-dir', join(folder, 'state'), '--http', '127.0.0.1:0', '--coordinator', `${server.address('balancer')}:7400`, '--enrol-token', token, '--otlp-endpoint', '']);
  await agent.logLine('listening');
  await until('both are scraped', async () => (await targets()).filter((health) => health === 'up').length === 2);

  const before = await until('the device is there', holder);
  coordinators.get(before)!.signal('SIGKILL');
  const killed = performance.now();
  const other = [...coordinators.keys()].find((name) => name !== before);
  await until('the device has gone over', async () => await holder() === other, 60_000);
  process.stderr.write(`server side: a device is with the other coordinator ${((performance.now() - killed) / 1000).toFixed(1)} s after the loss of its own\n`);
  expect(moefleet<{ device: { online: boolean } }>('devices', 'show', 'board').device.online).toBe(true);
  await until('the alert fires', async () => (await asked<{ alerts: { labels: Record<string, string>; state: string }[] }>('alerts')).alerts
    .some(({ labels, state }) => labels['alertname'] === 'MoefleetCoordinatorDown' && labels['instance'] === `${server.address(before)}:7402` && state === 'firing'));
  expect(await targets()).toEqual(expect.arrayContaining(['up', 'down']));

  coordinators.set(before, await server.startCoordinator(before));
  await until('the balancer and Prometheus have it back', async () => (await targets()).every((health) => health === 'up'));
});

(there && jaeger !== null ? test : test.skip)('with tail sampling the collector keeps requests that failed or took long, some of the rest, and counts what it throws away', async () => {
  const kept = new OtlpCollector();
  await kept.start();
  try {
    await server.startCollector(jaeger!, 'collector-sampling.yaml', kept.url);
    const began = BigInt(Date.now()) * 1_000_000n;
    const request = (number: number, seconds: number, failed: boolean) => ({
      traceId: (0x1000 + number).toString(16).padStart(32, '1'), spanId: (0x1000 + number).toString(16).padStart(16, '1'), name: 'chat', kind: 2,
      startTimeUnixNano: String(began), endTimeUnixNano: String(began + BigInt(seconds * 1e9)), status: failed ? { code: 2 } : {},
    });
    const requests = Array.from({ length: 300 }, (_, at) => request(at, at === 7 ? 6 : 1, at === 11));
    const sent = await fetch(`http://${server.address('collector')}:4318/v1/traces`, {
      method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans: requests }] }] }),
    });
    expect(sent.status).toBe(200);
    const counted = async (decision: 'sampled' | 'not_sampled') => {
      const text = await (await fetch(`http://${server.address('collector')}:8888/metrics`)).text();
      return Number(new RegExp(`^otelcol_processor_tail_sampling_global_count_traces_sampled_total{decision="${decision}"[^}]*} (\\d+)$`, 'm').exec(text)?.[1] ?? 0);
    };
    await until('all of them have been judged', async () => await counted('sampled') + await counted('not_sampled') === 300);
    await until('what is kept has arrived', async () => kept.spans.length === await counted('sampled'));
    expect(kept.spans.map(({ spanId }) => spanId)).toEqual(expect.arrayContaining([7, 11].map((number) => requests[number]!.spanId)));
    expect(kept.spans.length).toBeLessThan(30);
  } finally {
    await kept.stop();
  }
});

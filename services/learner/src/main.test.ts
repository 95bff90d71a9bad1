import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { Queue } from 'bullmq';
import { until } from '../../../test/harness/ports';
import { startRedis, type TestRedis } from '../../../test/harness/redis';
import { QUEUE_NAME } from './job-worker';
import { learnableDevice } from './testing/learnable-device';
import { ScriptedRegistry } from './testing/scripted-registry';

// The program as it is started, from what was built.
const REPO = join(__dirname, '..', '..', '..');
const MAIN = join(REPO, 'services', 'learner', 'dist', 'main.js');
const MODEL = join(REPO, 'test', 'fixtures', 'tinymoe-17m-q8_0.gguf');
const TEXT = join(REPO, 'test', 'fixtures', 'wikitext.txt');

class Learner {
  readonly child: ChildProcess;
  log = '';
  readonly ended: Promise<number | null>;

  constructor(flags: Record<string, string>) {
    this.child = spawn(process.execPath, ['-e', `require(${JSON.stringify(MAIN)}).runLearner(${JSON.stringify({ http: '127.0.0.1:0', ...flags })}, {}).then((code) => process.exit(code))`],
      { stdio: ['ignore', 'ignore', 'pipe'] });
    this.child.stderr!.on('data', (data: Buffer) => { this.log += data.toString(); });
    this.ended = new Promise((resolve) => this.child.once('close', resolve));
  }

  says(message: string): Promise<boolean> {
    return until(`the learner says "${message}"`, () => this.log.includes(`"msg":"${message}"`));
  }
}

test.each([
  [{ model: '/nowhere/m.gguf' }, /^moefleet learner: \/nowhere\/m.gguf: cannot read the model file \(no such file\); name it with --model\n$/],
  [{ model: TEXT }, /^moefleet learner: .*wikitext.txt/],
  [{ text: '/nowhere/t.txt' }, /^moefleet learner: \/nowhere\/t.txt: cannot be read/],
  [{ tokens: '512000' }, /^moefleet learner: .*wikitext.txt: the text has \d+ tokens, 512001 are needed/],
  [{ model: `${MODEL},${REPO}/test/../test/fixtures/tinymoe-17m-q8_0.gguf` }, /^moefleet learner: .*: the same model as another of --model; name each once\n$/],
  [{ budget: 'much' }, /^moefleet learner: --budget: "much" is not a percentage/],
])('refuses %j with exit code 2 and one line', async (flags, line) => {
  const learner = new Learner({ model: MODEL, text: TEXT, ...flags });
  expect(await learner.ended).toBe(2);
  expect(learner.log).toMatch(line);
  expect(learner.log.trimEnd().split('\n')).toHaveLength(1);
});

test('starts without Redis and without a coordinator, and does its job when they are there', async () => {
  const redis: TestRedis = await startRedis();
  const registry = new ScriptedRegistry();
  const redisPrefix = `test-${randomUUID()}`;
  const queue = new Queue(QUEUE_NAME, { connection: { url: redis.url, maxRetriesPerRequest: null }, prefix: `{${redisPrefix}:bull}` });
  queue.on('error', () => {});
  await queue.add('run', { reason: 'tick' });
  await redis.stop();
  await registry.start();
  registry.stop();
  const learner = new Learner({
    model: MODEL, text: TEXT, tokens: '512', redisUrl: redis.url, redisPrefix, operator: registry.address,
  });
  try {
    await learner.says('redis away, trying again');
    await redis.start();
    await learner.says('redis back');
    await learner.says('coordinator away, trying again');
    const modelHash = /"modelHash":"([0-9a-f]+)"/.exec(learner.log)![1]!;
    registry.devices = [learnableDevice('a', { modelHash, maxCapacities: Array<number>(6).fill(16) }), learnableDevice('b', { modelHash: 'ab'.repeat(32) })];
    await registry.start();
    await until('it proposes', () => registry.proposed.length > 0, 60_000);
    expect(registry.proposed[0]![0]).toMatchObject({ deviceId: 'a', proposed: true });
    expect(registry.activities.some((activity) => activity.startsWith('measuring'))).toBe(true);

    const httpAddress = /"httpAddress":"([^"]+)"/.exec(learner.log)![1]!;
    const metrics = await until('the run is counted', async () => {
      const text = await (await fetch(`http://${httpAddress}/metrics`)).text();
      return text.includes('moefleet_learner_runs_total{outcome="done"} 1') ? text : null;
    });
    const figure = (name: string) => Number(new RegExp(`^moefleet_learner_${name} (\\S+)$`, 'm').exec(metrics)?.[1]);
    expect(figure('devices_proposed')).toBe(1);
    expect(figure('surface_points_total')).toBe(registry.puts);
    expect(figure('surface_point_seconds_count')).toBe(registry.puts);
    expect(figure('devices_frozen{reason="other_model"}')).toBe(1);
    expect(await (await fetch(`http://${httpAddress}/healthz`)).json()).toEqual({ status: 'ok', redis: 'up', coordinator: 'up' });

    learner.child.kill('SIGTERM');
    expect(await learner.ended).toBe(0);
  } finally {
    learner.child.kill('SIGKILL');
    registry.stop();
    await queue.close();
    await redis.close();
  }
});

test('gives its job back when it is stopped in the middle, and leaves no process', async () => {
  const redis = await startRedis();
  const registry = new ScriptedRegistry();
  await registry.start();
  const redisPrefix = `test-${randomUUID()}`;
  const queue = new Queue(QUEUE_NAME, { connection: { url: redis.url, maxRetriesPerRequest: null }, prefix: `{${redisPrefix}:bull}` });
  const learner = new Learner({ model: MODEL, text: TEXT, redisUrl: redis.url, redisPrefix, operator: registry.address });
  try {
    await learner.says('model and text read');
    const modelHash = /"modelHash":"([0-9a-f]+)"/.exec(learner.log)![1]!;
    registry.devices = [learnableDevice('a', { modelHash, maxCapacities: Array<number>(6).fill(16) })];
    const { id } = await queue.add('run', { reason: 'operator' });
    await until('a point is measured', () => registry.puts > 0);
    learner.child.kill('SIGTERM');
    expect(await learner.ended).toBe(0);
    expect(await (await queue.getJob(id!))!.getState()).toBe('waiting');
    expect([...registry.surfaces.values()].flatMap(({ points }) => points).length).toBe(registry.puts);
    expect(registry.proposed).toEqual([]);
  } finally {
    learner.child.kill('SIGKILL');
    registry.stop();
    await queue.close();
    await redis.close();
  }
});

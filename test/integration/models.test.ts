/**
 * Models from the coordinator's store to real agents: pushed, fetched while the one before serves, put in its place between two
 * requests, kept until the next has served, and still there after a restart.
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packModel, quantizeModel } from '@moefleet/edge-agent/engine';
import { writeNanModel } from '../../edge-agent/src/control/testing/nan-model';
import type { RunningAgent } from '../../services/demo/src/local-fleet';
import { MODEL } from '../harness/paths';
import { until } from '../harness/ports';
import { complete, TestFleet } from '../harness/test-fleet';

interface Pushed { model: { manifestSha256: string; bytes: string }; sentBytes: number; }
interface Device { online: boolean; info: { model: { manifestSha256: string; status: string } | null; modelFetch?: { fromCoordinator: string } } | null; reported: { reason: string; state: string; effective: { lambda: number } } | null; }

const test = new TestFleet();
const { folder } = test;
const ids = ['one', 'two'];
const agents = new Map<string, RunningAgent>();
const pushed = new Map<string, Pushed>();

const push = async (name: string): Promise<void> => void pushed.set(name, await test.cli<Pushed>('model', 'push', join(folder, `${name}.gguf`)));
const idOf = (name: string): string => pushed.get(name)!.model.manifestSha256;
const modelsOf = (id: string): string[] => {
  const models = join(folder, 'state', id, 'models');
  return existsSync(models) ? readdirSync(models).filter((name) => name.endsWith('.gguf')).sort() : [];
};
const runs = (id: string, manifest: string): Promise<unknown> => until(`${id} runs ${manifest.slice(0, 12) || 'its own model'}`, async () => {
  const { info } = await test.device(id) as unknown as Device;
  return info?.model?.status.endsWith('READY') && info.model.manifestSha256 === manifest;
}, 90_000, 250);
const change = (...args: string[]): Promise<unknown> => test.cli('model', ...args, '--all', '--soak', '0s');

beforeAll(async () => {
  await test.fleet.startRedis();
  await test.fleet.startCoordinator(['--artifact-dir', join(folder, 'artifacts')]);
  await packModel(MODEL, join(folder, 'first.gguf'));
  await quantizeModel(join(folder, 'first.gguf'), join(folder, 'second.gguf'), { type: 'q4_0', downType: 'q4_0', requantize: true, threads: 0, replace: false });
  await writeNanModel(MODEL, join(folder, 'unpacked.gguf'));
  await packModel(join(folder, 'unpacked.gguf'), join(folder, 'nan.gguf'));
  for (const id of ids) agents.set(id, await test.agent(id));
  await test.online(...ids);
  await push('first');
  await push('second');
  await push('nan');
  await test.cli('lambda', 'set', '0.3', '--all');
});
afterAll(() => test.stop());

it('a model that is set comes to every device, whole, while the one before serves', async () => {
  let answered = 0;
  let over = false;
  const users = ids.map(async (id) => {
    while (!over) {
      // Between two requests nobody is turned away; while the engine changes hands one may be.
      await complete(agents.get(id)!.httpUrl, { tokens: 4 }).then(() => { answered += 1; }, (error: Error) => expect(error.message).toMatch(/HTTP 503/));
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  });
  const lambdas = new Set<number>();
  const watched = (async () => {
    while (!over) {
      const text = await (await fetch(`${agents.get('one')!.httpUrl}/metrics`)).text();
      const value = (name: string) => Number(new RegExp(`^moefleet_agent_${name} (\\S+)`, 'm').exec(text)?.[1]);
      const arrived = value('model_bytes_total{from="coordinator",to="here"}') + value('model_bytes_total{from="peers",to="here"}');
      if (arrived > 0 && arrived < Number(pushed.get('first')!.model.bytes) / 2) lambdas.add(value('lambda'));
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  })();
  await change('set', 'first', '--bandwidth', '6MB/s');
  for (const id of ids) await runs(id, idOf('first'));
  over = true;
  await Promise.all([...users, watched]);
  expect(answered).toBeGreaterThan(0);
  // λ stays with the model that it was set for.
  expect(lambdas).toEqual(new Set([0.3]));
  await until('λ is 0 with the newcomer', async () => (await test.device('one')).reported?.effective.lambda === 0);
  for (const id of ids) {
    const file = readFileSync(join(folder, 'state', id, 'models', `${idOf('first')}.gguf`));
    expect(createHash('sha256').update(file).digest('hex')).toBe(createHash('sha256').update(readFileSync(join(folder, 'first.gguf'))).digest('hex'));
  }
});

it('the one before is kept until the next has served', async () => {
  await complete(agents.get('one')!.httpUrl, { tokens: 4 });
  await change('set', 'second');
  for (const id of ids) await runs(id, idOf('second'));
  expect(modelsOf('one')).toEqual([`${idOf('first')}.gguf`, `${idOf('second')}.gguf`].sort());
  await complete(agents.get('one')!.httpUrl, { tokens: 4 });
  await until('the first is gone', () => modelsOf('one').length === 1);
  expect(modelsOf('one')).toEqual([`${idOf('second')}.gguf`]);
});

it('one that computes no numbers is refused by the first device, which says so and serves the one before; nobody else gets it', async () => {
  await expect(change('set', 'nan', '--stages', '1,100%')).rejects.toThrow(/what it computes are no numbers/);
  for (const id of ids) {
    await runs(id, idOf('second'));
    expect((await complete(agents.get(id)!.httpUrl, { tokens: 4 })).completionTokens).toBe(4);
  }
  const logs = ids.map((id) => agents.get(id)!.child.log().includes('what it computes are no numbers'));
  expect(logs.filter(Boolean)).toHaveLength(1);
});

it('after a restart it runs what its spec names, and without a model in it the one of its own', async () => {
  const { child } = agents.get('one')!;
  await child.stop();
  agents.set('one', await test.agent('one'));
  await runs('one', idOf('second'));
  expect((await complete(agents.get('one')!.httpUrl, { tokens: 4 })).completionTokens).toBe(4);
  await change('auto');
  for (const id of ids) await runs(id, '');
  await until('λ is back with it', async () => (await test.device('one')).reported?.effective.lambda === 0.3);
  await complete(agents.get('one')!.httpUrl, { tokens: 4 });
  await until('nothing is kept', () => modelsOf('one').length === 0);
});

import { status } from '@grpc/grpc-js';
import { DeviceUse } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import { until } from '../../../test/harness/ports';
import { CoordinatorLink, CoordinatorRefusedError } from './coordinator-link';
import { emptyKnowledge } from './knowledge';
import { emptySurface } from './measured-surface';
import { learnableDevice } from './testing/learnable-device';
import { ScriptedRegistry } from './testing/scripted-registry';

const log = createLogger('test', 'silent');
const surface = emptySurface({ modelHash: 'm', engineVersion: 'e' }, { name: 'a', textHash: 't' }, 512);
let registry: ScriptedRegistry;
let link: CoordinatorLink;
let signal: AbortSignal;

beforeEach(async () => {
  registry = new ScriptedRegistry();
  await registry.start();
  link = new CoordinatorLink(registry.address, null, log, () => 0);
  signal = new AbortController().signal;
});
afterEach(() => {
  link.close();
  registry.stop();
});

test('tells a surface that nobody has stored from one that somebody has', async () => {
  expect(await link.getSurface('m', 't', signal)).toBeNull();
  await link.putSurface(surface, signal);
  expect(await link.getSurface('m', 't', signal)).toEqual(surface);
});

test('keeps what is known of devices, however many', async () => {
  const many = Array.from({ length: 1200 }, (_, i) => emptyKnowledge(`d${i}`, 'm', 'phone'));
  await link.putKnowledge(many, signal);
  expect(await link.listKnowledge(signal)).toEqual(many);
});

test('reads from a coordinator that streams nothing in one message, and knows nothing of uses from it', async () => {
  registry.old = true;
  registry.devices = [learnableDevice('a')];
  await link.putKnowledge([emptyKnowledge('a', 'm', 'phone')], signal);
  expect((await link.listLearnable(signal)).map(({ id }) => id)).toEqual(['a']);
  expect(await link.listKnowledge(signal)).toHaveLength(1);
  expect((await link.useBits('m', 0n, signal)).size).toBe(0);
});

test('takes uses of the model since a time', async () => {
  registry.uses = [['a', 'm', 5n], ['b', 'm', 4n], ['c', 'other', 9n]].map(([deviceId, modelHash, timeMs]) => DeviceUse.fromPartial({ deviceId, modelHash, timeMs } as object));
  expect([...(await link.useBits('m', 5n, signal)).keys()]).toEqual(['a']);
});

test('waits for a coordinator that is away, and goes on when it is back', async () => {
  registry.devices = [learnableDevice('a')];
  registry.stop();
  let settled = false;
  const listed = link.listLearnable(signal).finally(() => { settled = true; });
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(settled).toBe(false);
  await registry.start();
  expect((await listed).map((device) => device.id)).toEqual(['a']);
});

test('a stored surface that is damaged is measured anew, not waited for', async () => {
  registry.fails = { code: status.DATA_LOSS, details: 'no quality surface' };
  expect(await link.getSurface('m', 't', signal)).toBeNull();
});

test('gives up at once when it is told to', async () => {
  registry.fails = { code: status.UNAVAILABLE, details: 'redis is away' };
  const stop = new AbortController();
  const put = link.putSurface(surface, stop.signal);
  await until('it has tried', () => registry.calls > 0);
  stop.abort(new Error('stopping'));
  await expect(put).rejects.toThrow('stopping');
});

test('does not repeat what the coordinator refused', async () => {
  registry.fails = { code: status.INVALID_ARGUMENT, details: 'no hash' };
  await expect(link.putSurface(surface, signal)).rejects.toThrow(CoordinatorRefusedError);
  expect(registry.calls).toBe(1);
});

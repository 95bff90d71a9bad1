/**
 * A site that downloads once: real agents in network namespaces of their own on one LAN, enrolled over mutual TLS with one real
 * coordinator, are all set to one model at the same time (`moefleet model set`), fetch it, verify it and load it. Compares what the
 * coordinator sent with the model's size.
 *
 * Root and iproute2; `npx tsc -b` before. Room for all the copies, and 200 MiB of memory a device.
 *
 *   --devices 20
 *   --width 4448        of the model's experts: 500 MiB
 *   --rate 1gbit        of each device's link, as tc takes it
 *   --folder DIR        for the copies (default: the system's temporary folder)
 *   --limit-minutes 30
 *   --json
 */
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { readFlags } from '../shared.mjs';
import { BenchFleet, inNamespace, inside, MIB, sha256Of, wideModel } from './bench-fleet.mjs';

const flags = readFlags({
  devices: { type: 'string', default: '20' }, width: { type: 'string', default: '4448' }, rate: { type: 'string', default: '1gbit' }, folder: { type: 'string', default: tmpdir() },
  'limit-minutes': { type: 'string', default: '30' }, json: { type: 'boolean', default: false },
});
inNamespace();

const bench = new BenchFleet(flags.folder);
const names = Array.from({ length: Number(flags.devices) }, (_, i) => `board-${i + 1}`);
const load = () => Number(readFileSync('/proc/loadavg', 'utf8').split(' ')[0]);
let began = Date.now();
const seconds = () => (Date.now() - began) / 1000;
const tell = (text) => process.stderr.write(`${seconds().toFixed(0)} s: ${text}\n`);
const stateFolder = (name) => join(bench.folder, 'state', name);

try {
  await bench.start();
  const model = await bench.push(wideModel(join(bench.folder, 'files'), flags.width), 'wide');
  tell(`${model.name}: ${(model.bytes / MIB).toFixed(0)} MiB in ${model.chunks} chunks, ${(model.distinctBytes / MIB).toFixed(0)} of them distinct, the largest ${(model.largestChunkBytes / MIB).toFixed(2)} MiB`);
  const token = await bench.tokenFor(names.length);
  for (const name of names) {
    const place = bench.addPlace(name);
    inside(place.namespace, 'tc', 'qdisc', 'add', 'dev', 'eth0', 'root', 'tbf', 'rate', flags.rate, 'burst', '1mb', 'latency', '400ms');
    await bench.startAgent(place, { token, stateFolder: stateFolder(name), maxCache: '80MiB' });
  }
  await bench.online(names.length);
  tell(`${names.length} devices are online`);
  const limitMs = Date.now() + Number(flags['limit-minutes']) * 60_000;
  began = Date.now();
  await bench.moefleet('model', 'set', model.name, '--all', '--stages', '100%', '--soak', '0s', '--detach');
  const whole = new Map();
  for (let told = 0; whole.size < names.length;) {
    await sleep(2_000);
    const devices = await bench.allDevices();
    for (const { id, info, reported } of devices) {
      if (reported?.state?.endsWith('FAILED')) throw new Error(`${id}: ${reported.reason}`);
      if (whole.has(id) || info?.model?.manifestSha256 !== model.id || !info.model.status.endsWith('READY')) continue;
      whole.set(id, seconds());
      tell(`${id} runs it`);
    }
    if (seconds() - told > 20) {
      told = seconds();
      const done = devices.map(({ id, info }) => (whole.has(id) ? model.bytes : Number(info?.modelFetch?.bytesDone ?? 0)));
      tell(`${(done.reduce((sum, one) => sum + one, 0) / MIB).toFixed(0)} MiB are there in all, the least ${(Math.min(...done) / MIB).toFixed(0)}; the coordinator has sent ${((await bench.coordinatorSent()) / MIB).toFixed(0)}`);
    }
    if (Date.now() > limitMs) throw new Error(`${whole.size} of ${names.length} have it after ${flags['limit-minutes']} minutes`);
  }
  const took = seconds();
  const sent = await bench.coordinatorSent();
  const each = {};
  let same = 0;
  for (const name of names) {
    each[name] = { seconds: whole.get(name), ...await bench.traffic(bench.devices.get(name)) };
    if (await sha256Of(join(stateFolder(name), 'models', `${model.id}.gguf`)) === model.sha256) same += 1;
  }
  const result = { devices: names.length, whole: same, modelMib: model.bytes / MIB, distinctMib: model.distinctBytes / MIB, coordinatorMib: sent / MIB, times: sent / model.bytes, seconds: took, load: load(), each };
  console.log(flags.json ? JSON.stringify(result) : `${same} of ${names.length} devices run the model of ${result.modelMib.toFixed(0)} MiB, whole and verified, after ${took.toFixed(0)} s; the coordinator sent ${result.coordinatorMib.toFixed(0)} MiB, ${result.times.toFixed(2)} times its size; load ${result.load}`);
  process.exitCode = same === names.length && result.times <= 2 ? 0 : 1;
} finally {
  await bench.stop();
}

/**
 * Power cuts while a model comes over a bad link: a real agent, enrolled over mutual TLS, fetches from a real coordinator at
 * 5 Mbit/s with 30% of the packets lost each way, its state and the model on an ext4 of its own, which is shut down at random points
 * without its log being flushed, the agent killed with it. Each time it is mounted and the agent started again. Counts what arrived.
 *
 * Root, iproute2, nftables, util-linux, e2fsprogs and python3; `npx tsc -b` before.
 *
 *   --width 256         of the model's experts: 32 MiB
 *   --cuts 10
 *   --loss 30           percent, each way
 *   --rate 5mbit        as tc takes it
 *   --congestion cubic  what the coordinator's machine does about loss; bbr where the kernel has it
 *   --seed 1            of the points
 *   --limit-minutes 60
 *   --json
 */
import { mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { readFlags } from '../shared.mjs';
import { BenchFleet, inNamespace, inside, MIB, run, sha256Of, waitFor, wideModel } from './bench-fleet.mjs';

const flags = readFlags({
  width: { type: 'string', default: '256' }, cuts: { type: 'string', default: '10' }, loss: { type: 'string', default: '30' }, rate: { type: 'string', default: '5mbit' },
  congestion: { type: 'string', default: 'cubic' }, seed: { type: 'string', default: '1' }, 'limit-minutes': { type: 'string', default: '60' }, json: { type: 'boolean', default: false },
});
inNamespace();

const LOOK_MS = 100;
const began = Date.now();
const seconds = () => ((Date.now() - began) / 1000).toFixed(0);
const tell = (text) => process.stderr.write(`${seconds()} s: ${text}\n`);
const bench = new BenchFleet(tmpdir());
const mount = join(bench.folder, 'disk');
const image = join(bench.folder, 'disk.img');
const mounted = () => run('mount', '-o', 'loop', image, mount);

/** Packets as they are on a wire (else the kernel passes on, and loses, 64 KiB at a time), lost where they arrive. */
function spoil({ namespace, port }) {
  const lossy = (device) => `add table netdev bad; add chain netdev bad lossy { type filter hook ingress device "${device}" priority 0; }; add rule netdev bad lossy numgen random mod 100 < ${flags.loss} counter drop`;
  for (const [at, device] of [[(...command) => run(...command), port], [(...command) => inside(namespace, ...command), 'eth0']]) {
    at('ip', 'link', 'set', device, 'gso_max_segs', '1');
    at('tc', 'qdisc', 'add', 'dev', device, 'root', 'tbf', 'rate', flags.rate, 'burst', '16kb', 'latency', '200ms');
    at('nft', lossy(device));
  }
}

/** A second link, without loss, over which this program alone looks at the agent. */
function addWindow({ namespace }) {
  run('ip', 'link', 'add', 'window', 'type', 'veth', 'peer', 'name', 'eth1', 'netns', namespace);
  run('ip', 'addr', 'add', '10.79.0.1/24', 'dev', 'window');
  run('ip', 'link', 'set', 'window', 'up');
  inside(namespace, 'ip', 'addr', 'add', '10.79.0.2/24', 'dev', 'eth1');
  inside(namespace, 'ip', 'link', 'set', 'eth1', 'up');
}

/** As if the power went: nothing that is not on the disk gets there any more. */
function cutPower() {
  run('python3', '-c', 'import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack("I", 2))', mount);
}

/** mulberry32 */
function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

try {
  await bench.start();
  run('ip', 'route', 'change', '10.78.0.0/16', 'dev', 'lan', 'proto', 'kernel', 'scope', 'link', 'src', '10.78.0.1', 'congctl', flags.congestion);
  const model = await bench.push(wideModel(join(bench.folder, 'files'), flags.width), 'wide');
  run('truncate', '-s', String(model.bytes + 96 * MIB), image);
  run('mkfs.ext4', '-q', image);
  mkdirSync(mount);
  mounted();
  const place = bench.addPlace('board');
  addWindow(place);
  const token = await bench.tokenFor(1);
  const start = () => bench.startAgent(place, { token, stateFolder: join(mount, 'state'), maxCache: '8MiB', httpAddress: '10.79.0.2' });
  await start();
  await bench.online(1);
  spoil(place);
  tell(`${model.name}: ${(model.bytes / MIB).toFixed(1)} MiB in ${model.chunks} chunks, the largest ${(model.largestChunkBytes / MIB).toFixed(2)} MiB; ${flags.loss}% lost each way, ${flags.rate}, ${flags.congestion}`);
  await bench.moefleet('model', 'set', model.name, '--all', '--stages', '100%', '--soak', '0s', '--detach');
  const random = seeded(Number(flags.seed));
  const points = Array.from({ length: Number(flags.cuts) }, () => random() * model.distinctBytes).sort((a, b) => a - b);
  const limitMs = Number(flags['limit-minutes']) * 60_000;
  let before = 0;
  const rounds = [];
  for (const point of [...points, Infinity]) {
    let here = 0;
    for (let told = Date.now(); ; await sleep(LOOK_MS)) {
      here = (await bench.traffic(place))?.coordinator ?? here;
      if (before + here >= point) break;
      if (Date.now() - began > limitMs) throw new Error(`not whole after ${flags['limit-minutes']} minutes; ${((before + here) / MIB).toFixed(2)} MiB have arrived, after ${rounds.length} cuts`);
      if (Date.now() - told > 60_000) {
        told = Date.now();
        tell(`${((before + here) / MIB).toFixed(2)} MiB`);
      }
      if (point === Infinity && (await bench.device('board')).info?.model?.manifestSha256 === model.id) break;
    }
    here = (await bench.traffic(place))?.coordinator ?? here;
    before += here;
    rounds.push({ atMib: point / MIB, arrivedMib: here / MIB, seconds: Number(seconds()) });
    if (point === Infinity) break;
    cutPower();
    bench.kill(place);
    await waitFor('the agent is gone', () => place.child.ended, 10_000, 50);
    tell(`the power goes after ${(before / MIB).toFixed(2)} MiB`);
    await waitFor('the disk is free', () => { try { run('umount', mount); return true; } catch { return false; } }, 10_000, 200);
    mounted();
    await start();
  }
  await waitFor('the model serves', async () => (await bench.device('board')).reported?.state?.endsWith('APPLIED'), 120_000);
  const found = await sha256Of(join(mount, 'state', 'models', `${model.id}.gguf`));
  const cuts = points.length;
  const result = {
    whole: found === model.sha256, cuts, congestion: flags.congestion, seconds: Number(seconds()), modelMib: model.bytes / MIB, largestChunkMib: model.largestChunkBytes / MIB,
    arrivedMib: before / MIB, againMib: (before - model.distinctBytes - model.manifestBytes) / MIB, mostAgainMib: (cuts * model.largestChunkBytes) / MIB, sentMib: (await bench.coordinatorSent()) / MIB, rounds,
  };
  if (flags.json) console.log(JSON.stringify(result));
  else {
    const { whole, arrivedMib, againMib, mostAgainMib, sentMib } = result;
    console.log(`${whole ? 'whole, verified and in service' : 'NOT THE MODEL'} after ${cuts} cuts, ${result.seconds} s; ${arrivedMib.toFixed(2)} MiB arrived of ${result.modelMib.toFixed(2)}: ${againMib.toFixed(2)} again, at most ${mostAgainMib.toFixed(2)} (the largest chunk a cut); the coordinator handed ${sentMib.toFixed(2)} MiB to its connections`);
  }
  process.exitCode = result.whole && result.againMib <= result.mostAgainMib ? 0 : 1;
} catch (error) {
  process.stderr.write(`${bench.devices.get('board')?.child?.log().split('\n').slice(-20).join('\n')}\n`);
  throw error;
} finally {
  if (bench.devices.get('board')?.child?.ended === false) bench.kill(bench.devices.get('board'));
  await sleep(500);
  try { run('umount', mount); } catch { /* it was not mounted */ }
  await bench.stop();
}

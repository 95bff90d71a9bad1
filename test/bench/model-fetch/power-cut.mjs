/**
 * Power cuts while a model comes over a bad link: a device in a network namespace of its own fetches it at 5 Mbit/s with 30% of the
 * packets lost each way onto an ext4 of its own, which is shut down at random points without its log being flushed, the process
 * killed with it. Each time it is mounted and started again. Counts what was sent, received and kept.
 *
 * Root, iproute2, nftables, util-linux, e2fsprogs and python3; `npx tsc -b edge-agent` before.
 *
 *   --mib 32            size of the model
 *   --chunk-mib 1       of its chunks
 *   --cuts 10
 *   --loss 30           percent, each way
 *   --rate 5mbit        as tc takes it
 *   --congestion cubic  what the sender does about loss; bbr where the kernel has it
 *   --seed 1            of the points
 *   --json
 */
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { readFlags } from '../shared.mjs';
import { makeModel, MIB, sha256 } from './made-model.mjs';

const flags = readFlags({
  mib: { type: 'string', default: '32' }, 'chunk-mib': { type: 'string', default: '1' }, cuts: { type: 'string', default: '10' }, loss: { type: 'string', default: '30' },
  rate: { type: 'string', default: '5mbit' }, congestion: { type: 'string', default: 'cubic' }, seed: { type: 'string', default: '1' }, json: { type: 'boolean', default: false },
});
const modelBytes = Number(flags.mib) * MIB;
const chunkBytes = Number(flags['chunk-mib']) * MIB;
const here = new URL('.', import.meta.url).pathname;
const work = mkdtempSync(join(tmpdir(), 'moefleet-power-cut-'));
const [server, device] = [`mfs${process.pid % 1e6}`, `mfd${process.pid % 1e6}`];
const mount = join(work, 'disk');
const image = join(work, 'disk.img');
const run = (program, ...args) => execFileSync(program, args, { stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8' });
/** Not `ip netns exec`, which would hold the disk mounted in a namespace of its own. */
const inside = (namespace, ...command) => run('nsenter', `--net=/run/netns/${namespace}`, ...command);

function makeLink() {
  for (const one of [server, device]) run('ip', 'netns', 'add', one);
  run('ip', 'link', 'add', 'toDevice', 'netns', server, 'type', 'veth', 'peer', 'name', 'toServer', 'netns', device);
  for (const [namespace, link, address] of [[server, 'toDevice', '10.77.0.1/24'], [device, 'toServer', '10.77.0.2/24']]) {
    inside(namespace, 'ip', 'addr', 'add', address, 'dev', link);
    // Packets as they are on a wire: else the kernel passes on, and loses, 64 KiB at a time.
    inside(namespace, 'ip', 'link', 'set', link, 'gso_max_segs', '1', 'up');
    inside(namespace, 'tc', 'qdisc', 'add', 'dev', link, 'root', 'tbf', 'rate', flags.rate, 'burst', '16kb', 'latency', '200ms');
    inside(namespace, 'ip', 'route', 'change', '10.77.0.0/24', 'dev', link, 'congctl', flags.congestion);
    inside(namespace, 'nft', 'add table inet bad; add chain inet bad lossy { type filter hook input priority 0; }; add rule inet bad lossy numgen random mod 100 < ' + flags.loss + ' counter drop');
  }
}

/** As if the power went: nothing that is not on the disk gets there any more. */
function cutPower() {
  run('python3', '-c', 'import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack("I", 2))', mount);
}

const mounted = () => run('mount', '-o', 'loop', image, mount);

async function startServer(folder) {
  const child = spawn('nsenter', [`--net=/run/netns/${server}`, process.execPath, join(here, 'blob-host.mjs'), folder, '10.77.0.1'], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => JSON.parse((await lines.next()).value);
  const { port } = await next();
  return { child, port, counts: () => (child.stdin.write('\n'), next()) };
}

/** Resolves when it has ended by itself, or has received `until` bytes and lost its power. */
function fetchOnce(id, port, until) {
  return new Promise((resolve, reject) => {
    const child = spawn('nsenter', [`--net=/run/netns/${device}`, process.execPath, join(here, 'fetch-one.mjs'), join(mount, 'models'), id, String(modelBytes), `10.77.0.1:${port}`], { stdio: ['ignore', 'pipe', 'pipe'] });
    const seen = { received: 0, done: 0, kept: 0, cut: false, whole: false };
    let errors = '';
    child.stderr.on('data', (text) => { errors += text; });
    createInterface({ input: child.stdout }).on('line', (line) => {
      if (seen.cut) return;
      Object.assign(seen, JSON.parse(line));
      if (seen.received < until) return;
      seen.cut = true;
      cutPower();
      child.kill('SIGKILL');
    });
    child.on('close', (code) => {
      if (seen.cut || code === 0) resolve(seen);
      else reject(new Error(`the fetch ended with ${code}: ${errors}`));
    });
  });
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

const blobs = makeModel(join(work, 'blobs'), modelBytes, chunkBytes);
let host = null;
try {
  makeLink();
  run('truncate', '-s', String(modelBytes + 64 * MIB), image);
  run('mkfs.ext4', '-q', image);
  mkdirSync(mount);
  mounted();
  host = await startServer(blobs.folder);
  const random = seeded(Number(flags.seed));
  const points = Array.from({ length: Number(flags.cuts) }, () => random() * modelBytes).sort((a, b) => a - b);
  const began = Date.now();
  const rounds = [];
  let received = 0;
  for (const point of [...points, Infinity]) {
    const seen = await fetchOnce(blobs.id, host.port, point - received);
    received += seen.received;
    rounds.push({ atMib: point / MIB, receivedMib: seen.received / MIB, keptAtStartMib: seen.kept / MIB });
    process.stderr.write(`${((Date.now() - began) / 1000).toFixed(0)} s: ${seen.cut ? 'cut' : 'whole'} after ${(received / MIB).toFixed(2)} MiB received in all, ${(seen.kept / MIB).toFixed(2)} MiB were kept at its start\n`);
    if (seen.cut) {
      run('umount', mount);
      mounted();
    }
  }
  const { bytesSent } = await host.counts();
  const found = sha256(readFileSync(join(mount, 'models', `${blobs.id}.gguf`))).toString('hex');
  const result = {
    whole: found === blobs.fileSha256, cuts: points.length, seconds: (Date.now() - began) / 1000, modelMib: modelBytes / MIB, chunkMib: chunkBytes / MIB,
    receivedMib: received / MIB, againMib: (received - modelBytes - blobs.manifestBytes) / MIB, mostAgainMib: (points.length * chunkBytes) / MIB, sentMib: bytesSent / MIB, rounds,
  };
  if (flags.json) console.log(JSON.stringify(result));
  else {
    const { whole, seconds, receivedMib, againMib, mostAgainMib, sentMib } = result;
    console.log(`${whole ? 'whole and verified' : 'NOT THE MODEL'} after ${points.length} cuts, ${seconds.toFixed(0)} s; received ${receivedMib.toFixed(2)} MiB of ${flags.mib}: ${againMib.toFixed(2)} again, at most ${mostAgainMib} (a chunk a cut); the server handed ${sentMib.toFixed(2)} MiB to its kernel`);
  }
  process.exitCode = result.whole && result.againMib <= result.mostAgainMib ? 0 : 1;
} finally {
  host?.child.kill();
  for (const [program, ...args] of [['umount', mount], ['ip', 'netns', 'del', server], ['ip', 'netns', 'del', device]]) {
    try {
      execFileSync(program, args, { stdio: 'ignore' });
    } catch {
      // It was never made.
    }
  }
  rmSync(work, { recursive: true, force: true });
}

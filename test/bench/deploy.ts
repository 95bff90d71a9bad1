/**
 * How long `moefleet deploy ssh` takes for one board and for several at once, and whose processor time that is: the
 * operator's side (the command line and its ssh), the boards' (sshd, unpacking, the agent), the coordinator's with its
 * Redis. Boards are namespaces of this machine with real sshds, as in test/integration/deploy.test.ts. Takes root.
 *   --boards N    how many at once (default: 5)
 *   --rounds N    (default: 3)
 *   --share X     each board has X processors of its own and no more (a quota), as boards do; without, they share this machine's
 * Run with: npm run build:ts && node -r ./test/harness/typescript.js test/bench/deploy.ts
 */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { initFleet } from '../../coordinator/src/identity/init-fleet';
import { CLI_PATH, LocalFleet } from '../../services/demo/src/local-fleet';
import { buildBundle } from '../harness/bundle';
import { type DeviceHost, deviceLanOrSkip } from '../harness/device-hosts';
import { MODEL, REPO } from '../harness/paths';
import { freePort } from '../harness/ports';

const GROUPS = '/sys/fs/cgroup';
const PERIOD_US = 100_000;

interface HostJson { id: string; seconds: Record<string, number>; failure: { message: string } | null; }

/** What is started while this process is in it belongs to it. Control groups of version 1, or of version 2. */
class Share {
  private readonly folders: string[];

  constructor(readonly name: string, processors: number | null) {
    const split = existsSync(join(GROUPS, 'cpuacct'));
    this.folders = (split ? ['cpu', 'cpuacct'] : ['']).map((controller) => join(GROUPS, controller, `mf-${process.pid}-${name}`));
    for (const folder of this.folders) mkdirSync(folder);
    if (processors === null) return;
    const quotaUs = Math.round(processors * PERIOD_US);
    const limits = split ? { 'cpu.cfs_period_us': PERIOD_US, 'cpu.cfs_quota_us': quotaUs } : { 'cpu.max': `${quotaUs} ${PERIOD_US}` };
    for (const [file, value] of Object.entries(limits)) writeFileSync(join(this.folders[0]!, file), String(value));
  }

  enter(): void {
    for (const folder of this.folders) writeFileSync(join(folder, 'cgroup.procs'), String(process.pid));
  }

  /** Processor time so far. */
  get seconds(): number {
    const folder = this.folders.at(-1)!;
    if (this.folders.length > 1) return Number(readFileSync(join(folder, 'cpuacct.usage'), 'utf8')) / 1e9;
    return Number(/^usage_usec (\d+)/m.exec(readFileSync(join(folder, 'cpu.stat'), 'utf8'))![1]) / 1e6;
  }

  remove(): void {
    for (const folder of this.folders) rmdirSync(folder);
  }
}

function leaveGroups(): void {
  for (const controller of existsSync(join(GROUPS, 'cpuacct')) ? ['cpu', 'cpuacct'] : ['']) writeFileSync(join(GROUPS, controller, 'cgroup.procs'), String(process.pid));
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { boards: { type: 'string', default: '5' }, rounds: { type: 'string', default: '3' }, share: { type: 'string' } } });
  const lan = deviceLanOrSkip();
  if (!lan) process.exit(1);
  const folder = mkdtempSync(join(tmpdir(), 'moefleet-deploy-bench-'));
  const fleetFolder = join(folder, 'fleet');
  await initFleet(fleetFolder, 'fleet', [], Date.now());
  execFileSync(process.execPath, [join(REPO, 'deploy', 'bundle', 'keygen.mjs'), '--dir', fleetFolder]);
  await buildBundle(['--arch', process.arch, '--out', folder, '--key', join(fleetFolder, 'bundle-key.pem')]);

  const boards = Array.from({ length: Number(values.boards) }, (_, at) => new Share(`board-${at + 1}`, values.share === undefined ? null : Number(values.share)));
  const hosts: DeviceHost[] = [];
  for (const board of boards) {
    board.enter();
    hosts.push(await lan.add({ name: board.name }));
  }
  const coordinator = new Share('coordinator', null);
  coordinator.enter();
  const fleet = new LocalFleet({ folder, keep: false, logLevel: 'info' });
  await fleet.startRedis();
  const gateway = `${lan.address}:${await freePort()}`;
  await fleet.startCoordinator(['--tls-dir', fleetFolder, '--gateway', gateway, '--admin-token-file', join(folder, 'admin.token')]);
  const operator = new Share('operator', null);
  operator.enter();

  const moefleet = (...args: string[]) => new Promise<string>((resolve) => {
    const env = { ...process.env, HOME: folder, MOEFLEET_OPERATOR: fleet.operator, MOEFLEET_CA: join(fleetFolder, 'ca.pem'), MOEFLEET_TOKEN_FILE: join(folder, 'admin.token') };
    const child = spawn(process.execPath, [CLI_PATH, ...args, '--ssh-config', lan.sshConfig, '--json'], { stdio: ['ignore', 'pipe', 'ignore'], env });
    let out = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => { out += text; });
    child.once('close', () => resolve(out));
  });
  const used = () => ({ operator: operator.seconds, boards: boards.reduce((sum, board) => sum + board.seconds, 0), coordinator: coordinator.seconds });
  const run = async (of: readonly DeviceHost[]) => {
    const inventory = join(folder, 'inventory.ini');
    writeFileSync(inventory, of.map(({ name, address }) => `${name} ansible_host=${address} ansible_user=root\n`).join(''));
    const before = used();
    const began = performance.now();
    const { hosts: told } = JSON.parse(await moefleet('deploy', 'ssh', '--inventory', inventory, '--bundle', folder, '--model', MODEL, '--coordinator', gateway, '--cache', '4MiB',
      '--set', 'MOEFLEET_THREADS=1', '--set', 'MOEFLEET_MEMORY_PRESSURE=off')) as { hosts: HostJson[] };
    const seconds = (performance.now() - began) / 1000;
    const after = used();
    for (const { id, failure } of told) if (failure) throw new Error(`${id}: ${failure.message}`);
    const cpu = Object.entries(after).map(([side, at]) => `${side} ${(at - before[side as keyof typeof before]).toFixed(2)}`).join(', ');
    const phases = Object.entries(told[0]!.seconds).map(([phase, took]) => `${phase} ${took.toFixed(2)}`).join(', ');
    process.stdout.write(`${of.length} at once: ${seconds.toFixed(2)} s; processor seconds: ${cpu}; ${told[0]!.id}: ${phases}\n`);
    await moefleet('undeploy', 'ssh', '--inventory', inventory);
    return seconds;
  };
  const ratios: number[] = [];
  for (let round = 0; round < Number(values.rounds); round += 1) {
    const one = await run(hosts.slice(0, 1));
    ratios.push(await run(hosts) / one);
  }
  process.stdout.write(`${hosts.length} at once took ${ratios.map((ratio) => ratio.toFixed(2)).join(', ')} times as long as one\n`);
  await lan.close();
  await fleet.stop();
  leaveGroups();
  for (const share of [...boards, coordinator, operator]) share.remove();
  rmSync(folder, { recursive: true, force: true });
}

main().then(() => process.exit(0), (error: Error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});

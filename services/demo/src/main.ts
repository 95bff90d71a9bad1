/** `./dev demo`: the main job on one machine, measured. */
import { Command, InvalidArgumentError } from 'commander';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runDemo } from './demo';
import { forgetFleet, rememberFleet, stopKeptFleet } from './kept-fleet';
import { LocalFleet } from './local-fleet';
import { Progress } from './progress';
import { renderReport } from './report';

interface Flags { json: boolean; keep: boolean; stop: boolean; tokens: number; }

/** What an agent takes for one prompt. */
const MOST_TOKENS = 4096;

function tokenCount(text: string): number {
  const tokens = /^\d+$/.test(text) ? Number(text) : NaN;
  if (!(tokens >= 1 && tokens <= MOST_TOKENS)) throw new InvalidArgumentError(`Write an integer from 1 to ${MOST_TOKENS}.`);
  return tokens;
}

async function main(): Promise<number> {
  const flags = new Command('./dev demo')
    .description('starts Redis, Jaeger, a coordinator, a learner and three agents on this machine, measures the agents before and after the learner\'s rollout, and prints the figures and the address of a trace')
    .option('--json', 'print the report as JSON, alone on standard output', false)
    .option('--keep', 'leave everything running to play with', false)
    .option('--stop', 'stop what an earlier --keep left running', false)
    .option('--tokens <n>', 'tokens generated per prompt while measuring', tokenCount, 64)
    .parse().opts<Flags>();
  if (flags.stop) return stopKeptFleet();
  await stopKeptFleet(true);

  const folder = mkdtempSync(join(tmpdir(), 'moefleet-demo-'));
  const progress = new Progress(process.stderr);
  const fleet = new LocalFleet({
    folder, keep: flags.keep, logLevel: 'info',
    ...(flags.keep ? { onStart: (pids: number[]) => rememberFleet(folder, pids) } : {}),
  });
  const abort = new AbortController();
  let interrupted = 0;
  const onSignal = (): void => {
    interrupted += 1;
    if (interrupted > 1) process.exit(130);
    progress.step('interrupted; stopping');
    abort.abort();
  };
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);

  let kept = false;
  let keepLogs = false;
  try {
    const report = await runDemo(fleet, progress, { tokensPerPrompt: flags.tokens, folder, signal: abort.signal });
    progress.endLine();
    process.stdout.write(flags.json ? `${JSON.stringify(report, null, 2)}\n` : `\n${renderReport(report)}\n`);
    kept = flags.keep;
    if (kept) {
      process.stderr.write(`\nEverything runs on. Operate it:  export MOEFLEET_OPERATOR=${fleet.operator}; npx moefleet devices\n` +
        `Logs and state:  ${folder}\nStop it:         ./dev demo --stop\n`);
    }
    return 0;
  } catch (error) {
    progress.endLine();
    if (interrupted) return 130;
    keepLogs = true;
    process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\nlogs are kept in ${folder}\n`);
    return 1;
  } finally {
    if (!kept) await fleet.stop();
    if (flags.keep && !kept) forgetFleet();
    if (!kept && !keepLogs) rmSync(folder, { recursive: true, force: true });
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}

main().then((code) => { process.exitCode = code; }, (error: Error) => {
  process.stderr.write(`demo: ${error.message}\n`);
  process.exitCode = 1;
});

/** The commands that change what devices run: λ, cache, tracing. Each is a pin and its rollout; those of
 * routing and eviction are in change-routing.ts. */
import { type Command, Option } from 'commander';
import { type ChangeConfigRequest, Routing, SetRouting } from '@moefleet/proto';
import { durationFrom, integerFrom, listOf, numberFrom, sizeAbove } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { type Action, addOperatorGroup, type Run } from '../operator-command';
import { missingText, notApplied, rolloutExitCode, rolloutJson, rolloutText } from '../rollout-view';
import { addKillSwitch } from './kill-switch';
import { addStagingOptions, applyStaged, followStaged, readStaging, STAGING_HELP } from './staging';
import { addTargetOptions, readTarget } from '../target';

const DAY_MS = 86_400_000;

export type Change = NonNullable<ChangeConfigRequest['change']>;

const EXIT_CODES = `
Returns when every device has applied it, has failed, is offline, or the time is up. Exit code 0: all applied, or had
nothing to change; 1: some failed or are late; 3: only offline devices are missing, and get it when they come back.
`;

export function addLambda(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'lambda', 'how strongly devices pull their routing towards cached experts', (lambda, action) => {
    changing(context, action, lambda.command('set')
      .description('pin λ; it wins over the learner until `moefleet lambda auto`, and takes effect at the next token')
      .argument('<lambda>', 'strength in [0,1]; 0 is the model\'s own routing; a,b,... gives one per layer with experts', listOf(numberFrom(0, 1)))
      .option('--top-j <n>', 'how many of a token\'s best experts are never displaced', integerFrom(0, 4096)),
    `
Examples:
  moefleet lambda set 0.25 --all
  moefleet lambda set 0.25 --all --stages 1,25%,100% --soak 60s --gate 'perplexityLoss<1%,errors==0'
  moefleet lambda set 0.25 --selector class=phone --stages 1,100% --plan
  moefleet lambda set 0.3 --device phone-1 --top-j 1 --why "trial on one phone"
  moefleet lambda set 0.3 --selector class=phone --for 2h
  moefleet lambda set 0 --selector 'class=jetson,region in (eu,us),!canary'
  moefleet lambda set 0.1,0.2,0.2,0.3,0.3,0.3 --all
`, ({ args, options }) => {
      // commander hands the action its own reading of an argument, of which the run keeps the text.
      const lambdas = args[0]!.split(',').map(Number);
      const topJ = options['topJ'] as number | undefined;
      if (lambdas.length === 1) return { $case: 'setLambda', value: { lambda: lambdas[0]!, topJ } };
      return { $case: 'setRouting', value: SetRouting.fromPartial({ routing: Routing.ROUTING_CACHE_PRIOR, lambdas, topJ }) };
    });
    changing(context, action, lambda.command('auto').description('hand λ back to the learner; the same as `moefleet routing auto`'),
      '\nExample:\n  moefleet lambda auto --all\n', () => ({ $case: 'clearLambda', value: {} }));
    addKillSwitch(lambda, context, action);
  });
}

export function addCache(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'cache', 'how many experts devices keep in memory', (cache, action) => {
    changing(context, action, cache.command('set')
      .description('pin the cache size; a device\'s own limit still clamps it')
      .argument('[size]', 'bytes over all layers, such as 512MiB', sizeAbove(1))
      .option('--capacity <n>', 'experts per layer, instead of a size', integerFrom(1, 65_535)),
    `
Examples:
  moefleet cache set 512MiB --all
  moefleet cache set --capacity 16 --device jetson-1
`, ({ args, options }) => {
      const capacity = options['capacity'] as number | undefined;
      if ((args[0] === undefined) === (capacity === undefined)) throw new UsageFailure('give either a size, such as 512MiB, or --capacity n');
      return { $case: 'setCache', value: { size: capacity !== undefined ? { $case: 'capacity', value: capacity } : { $case: 'cacheBytes', value: BigInt(args[0]!) } } };
    });
    changing(context, action, cache.command('auto').description('hand the cache size back to the learner'),
      '\nExample:\n  moefleet cache auto --device jetson-1\n', () => ({ $case: 'clearCache', value: {} }));
  });
}

export function addTracing(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'tracing', 'which share of requests is traced', (tracing, action) => {
    changing(context, action, tracing.command('set')
      .description('trace this share of requests; a traced request has every flash miss as a span')
      .argument('<ratio>', 'share in [0,1]', numberFrom(0, 1)),
    '\nExample:\n  moefleet tracing set 0.05 --all\n',
    ({ args }) => ({ $case: 'setTracing', value: { traceRatio: Number(args[0]) } }));
  });
}

/** A command with a target, whose action sends `change` and follows its rollout. */
export function changing(context: Context, action: Action, command: Command, examples: string, change: (run: Run) => Change): void {
  addStagingOptions(addTargetOptions(command)).option('--why <text>', 'reason, kept with the change');
  // What hands back has nothing that could end.
  if (command.name() !== 'auto') command.addOption(new Option('--for <time>', 'the pin ends by itself after this long, such as 30m, 2h or 7d, as if it were cleared then').argParser(durationFrom(1000, 365 * DAY_MS)));
  command
    .addOption(new Option('--timeout <seconds>', 'how long to wait for devices').argParser(numberFrom(0.1, 600)).default(30))
    .addHelpText('after', EXIT_CODES + STAGING_HELP + examples);
  addCommonOptions(command, { operator: true }).action(action((run) => applyChange(context, run, change(run))));
}

async function applyChange(context: Context, run: Run, change: Change): Promise<void> {
  const lastsMs = run.options['for'] as number | undefined;
  const request: ChangeConfigRequest = {
    target: readTarget(run.options),
    change,
    why: String(run.options['why'] ?? ''),
    timeoutMs: Math.round(Number(run.options['timeout']) * 1000),
    stageMany: !run.options['now'],
    expiresInMs: lastsMs === undefined ? undefined : BigInt(lastsMs),
  };
  const staging = readStaging(run.options);
  if (staging) return applyStaged(context, run, request, staging);
  let waitingFor = -1;
  const startedMs = Date.now();
  const outcome = await run.operator.changeConfig(request, (state) => {
    const waiting = notApplied(state).length;
    if (waiting > 0 && waiting !== waitingFor && Date.now() - startedMs > 2000) run.note(`waiting for ${waiting} of ${state.devices.length} devices\n`);
    waitingFor = waiting;
  });
  if ('stagedRolloutId' in outcome) {
    run.note(`more than ten devices: staged as rollout ${outcome.stagedRolloutId}; Ctrl-C leaves it running\n`);
    return followStaged(context, run, outcome.stagedRolloutId);
  }
  const rollout = outcome;
  run.out(run.json ? jsonText(rolloutJson(rollout)) : rolloutText(rollout));
  if (lastsMs !== undefined) run.note(`${rollout.what}\n`);
  run.note(missingText(rollout));
  context.setExitCode(rolloutExitCode(rollout));
}

/** Builds the learner and runs it until it is told to stop. */
import { ConfigError, createLogger, type Env, HttpServer, Lifecycle, mergeSettings, runUntilSignal } from '@moefleet/runtime';
import { type LearnerConfig, readConfig, SETTINGS, WINDOW_TOKENS } from './config';
import { CoordinatorLink } from './coordinator-link';
import { EvaluationProcess } from './evaluation-process';
import { EvaluationInputError } from './evaluator';
import { JobWorker, type Work } from './job-worker';
import { type LearnerJobParts, type LearnerJobResult, runLearnerJob } from './learner-job';
import { MeasuredModels } from './measured-models';
import { Metrics, type RunOutcome } from './metrics';

export { SETTINGS } from './config';

/** How often those who watch are told. */
const REPORT_EVERY_MS = 1000;
const BAD_INPUT_EXIT_CODE = 2;

/** `flags` by commander's option names. Resolves with the exit code: 2 for settings, model or text that make no sense. */
export async function runLearner(flags: Record<string, unknown>, env: NodeJS.ProcessEnv): Promise<number> {
  let config: LearnerConfig;
  try {
    config = readConfig({ ...mergeSettings(SETTINGS, flags, env as Env), MOEFLEET_TOKEN: env['MOEFLEET_TOKEN'] });
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return refuse(error);
  }
  const log = createLogger('learner', config.logLevel);
  const { textPaths, tokens, threads } = config;
  const models = new MeasuredModels(config.modelPaths, textPaths, (modelPath, signal) => EvaluationProcess.open({ modelPath, textPaths, tokens, threads, context: WINDOW_TOKENS }, signal));
  try {
    const subjects = await models.identify(new AbortController().signal);
    for (const [i, subject] of subjects.entries()) log.info({ ...subject, model: config.modelPaths[i], texts: textPaths, tokens }, 'model and text read');
  } catch (error) {
    if (error instanceof EvaluationInputError) return refuse(error);
    log.fatal({ err: error }, 'the model cannot be evaluated');
    return 1;
  }

  const link = new CoordinatorLink(config.operatorAddress, config.token, log, Math.random, Date.now, config.caPem);
  const metrics = new Metrics();
  const learn = learnerWork(config, link, models, { queueRun: (reason) => worker.queueRun(reason), pointMeasured: (seconds) => metrics.pointMeasured(seconds) }, log);
  const worker: JobWorker = new JobWorker(measured(learn, metrics), { redis: config.redis, redisPrefix: config.redisPrefix, log });
  const http = new HttpServer(config.http, {
    health: () => ({ status: worker.up && link.up ? 'ok' : 'degraded', redis: worker.up ? 'up' : 'away', coordinator: link.up ? 'up' : 'away' }),
    metrics: async () => {
      metrics.redisUp.set(worker.up ? 1 : 0);
      metrics.coordinatorUp.set(link.up ? 1 : 0);
      const waiting = await worker.waiting();
      if (waiting !== null) metrics.queueLength.set(waiting);
      return { contentType: metrics.contentType, text: await metrics.text() };
    },
  });
  const lifecycle = new Lifecycle([
    { name: 'coordinator link', start: async () => {}, stop: async () => link.close() },
    http,
    { name: 'announcement', start: async () => log.info({ httpAddress: http.address }, 'listening'), stop: async () => {} },
    worker,
  ], log);
  return runUntilSignal(lifecycle, log);
}

/** The work, told to Prometheus. */
function measured(learn: (...given: Parameters<Work>) => Promise<LearnerJobResult>, metrics: Metrics): Work {
  return async (reason, onProgress, signal) => {
    const beganMs = Date.now();
    const ended = (outcome: RunOutcome, result?: LearnerJobResult) => metrics.runEnded(outcome, (Date.now() - beganMs) / 1000, Date.now(), result);
    metrics.running.set(1);
    try {
      const result = await learn(reason, onProgress, signal);
      ended('done', result);
      return result;
    } catch (error) {
      ended(signal.aborted ? 'stopped' : 'failed');
      throw error;
    } finally {
      metrics.running.set(0);
    }
  };
}

function learnerWork(
  config: LearnerConfig, link: CoordinatorLink, models: MeasuredModels, hooks: Pick<LearnerJobParts, 'queueRun' | 'pointMeasured'>, log: ReturnType<typeof createLogger>,
): (...given: Parameters<Work>) => Promise<LearnerJobResult> {
  return (_reason, onProgress, signal) => {
    let reportedMs = 0;
    return runLearnerJob({
      registry: link,
      identify: (wanted) => models.identify(wanted),
      openEvaluator: (subject, wanted) => models.open(subject, wanted),
      report: (activity, done, total) => {
        const now = Date.now();
        if (activity && now - reportedMs < REPORT_EVERY_MS) return;
        reportedMs = now;
        void link.reportActivity(activity, AbortSignal.timeout(5000));
        onProgress({ activity, done, total });
      },
      ...hooks,
      log,
      tokens: config.tokens,
      budget: config.budget,
      budgetRules: config.budgetRules,
      routings: config.routings,
      nowMs: Date.now,
    }, signal);
  };
}

function refuse(error: Error): number {
  process.stderr.write(`moefleet learner: ${error.message}\n`);
  return BAD_INPUT_EXIT_CODE;
}

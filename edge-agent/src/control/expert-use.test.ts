import type { ExpertUse as UseReport } from '@moefleet/proto';
import { createLogger } from '@moefleet/runtime';
import type { HostState } from '../engine-host';
import type { ExpertUse } from '../native';
import { until } from '../../../test/harness/ports';
import { ExpertUseReports } from './expert-use';
import { testModel } from './testing/test-model';

test('an engine that is closed while it is asked costs the report alone', async () => {
  const model = testModel();
  const state: HostState = { t: 'ready', model };
  const wanted = new Float64Array(model.info.moeLayers.length * model.info.experts).fill(16);
  const answers = [() => Promise.reject(new Error('the engine is closed')), () => Promise.resolve<ExpertUse>({ wanted, chosen: wanted })];
  const log = createLogger('test', 'silent');
  const warned = jest.spyOn(log, 'warn');
  const sent: UseReport[] = [];
  const reports = new ExpertUseReports({ host: { state, starts: 1, expertUse: () => answers.shift()?.() ?? Promise.resolve(null) }, send: (report) => sent.push(report), log });
  reports.setPace(5);
  await until('a report', () => sent.length > 0, 5_000, 2);
  reports.setPace(0);
  expect(warned).toHaveBeenCalledTimes(1);
  expect(sent[0]).toMatchObject({ sequence: 1n, modelHash: model.hash });
});

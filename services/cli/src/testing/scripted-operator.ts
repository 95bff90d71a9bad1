/** The other side of the wire, for tests: a real gRPC server whose answers a test writes. */
import { Server, ServerCredentials, type ServiceError, status } from '@grpc/grpc-js';
import {
  type ChangeConfigRequest, type Device, DeviceInfo, DeviceSpec, type ExplainLearnerResponse, type GetLearnerResponse, KnowledgeServiceService, type KnowledgeServiceServer, type MeasureDeviceRequest, type MeasureDeviceResponse,
  OperatorServiceService, type OperatorServiceServer, Reported, type Rollout, type RouterWindow, TelemetryFrame, type ListDevicesRequest, WindowServiceService, type WindowServiceServer,
} from '@moefleet/proto';

export interface OperatorScript {
  devices: Device[];
  /** sent in order; `hang` keeps the stream open after the last */
  rollouts: Rollout[];
  hang: boolean;
  measured: MeasureDeviceResponse[];
  learner: GetLearnerResponse;
  /** null: no such device */
  explained: ExplainLearnerResponse | null;
  /** of every device */
  windows: RouterWindow[];
  /** every call ends with it */
  fails: { code: status; details: string } | null;
}

export class ScriptedOperator {
  readonly script: OperatorScript = {
    devices: [], rollouts: [], hang: false, measured: [], learner: { proposals: [], activity: '' }, explained: null, windows: [], fails: null,
  };
  readonly listed: ListDevicesRequest[] = [];
  readonly changes: ChangeConfigRequest[] = [];
  readonly measures: MeasureDeviceRequest[] = [];
  learnerRuns = 0;
  cancelledStreams = 0;
  address = '';
  private readonly server = new Server();

  async start(): Promise<void> {
    const { script } = this;
    const failure = () => script.fails && Object.assign(new Error(script.fails.details), script.fails) as unknown as ServiceError;
    const service: OperatorServiceServer = {
      listDevices: (call, callback) => {
        this.listed.push(call.request);
        callback(failure(), { devices: script.devices, nextPageToken: '' });
      },
      getDevice: (call, callback) => {
        const device = script.devices.find((one) => one.id === call.request.deviceId);
        callback(failure() ?? (device ? null : { code: status.NOT_FOUND, details: `no device ${call.request.deviceId}` }), { device });
      },
      changeConfig: (call) => {
        this.changes.push(call.request);
        call.on('cancelled', () => { this.cancelledStreams += 1; });
        const error = failure();
        if (error) return void call.emit('error', error);
        for (const rollout of script.rollouts) call.write({ rollout, stagedRolloutId: '' });
        if (!script.hang) call.end();
      },
      getRollout: (_call, callback) => callback(failure(), { rollout: script.rollouts.at(-1) }),
      measureDevice: (call) => {
        this.measures.push(call.request);
        const error = failure();
        if (error) return void call.emit('error', error);
        for (const update of script.measured) call.write(update);
        call.end();
      },
      runLearner: (_call, callback) => {
        this.learnerRuns += 1;
        callback(failure(), { jobId: 'job-7' });
      },
      getLearner: (_call, callback) => callback(failure(), script.learner),
    };
    const knowledge: KnowledgeServiceServer = {
      listKnowledge: (_call, callback) => callback({ code: status.UNIMPLEMENTED }),
      streamKnowledge: (call) => void call.emit('error', { code: status.UNIMPLEMENTED }),
      streamUse: (call) => void call.emit('error', { code: status.UNIMPLEMENTED }),
      putKnowledge: (_call, callback) => callback({ code: status.UNIMPLEMENTED }),
      explainLearner: (_call, callback) => callback(failure() ?? (script.explained ? null : { code: status.NOT_FOUND, details: 'no such device' }), script.explained),
    };
    const windows: WindowServiceServer = {
      listWindows: (_call, callback) => callback({ code: status.UNIMPLEMENTED }),
      readWindows: (call) => {
        for (const window of script.windows) call.write({ window });
        call.end();
      },
      deleteWindows: (_call, callback) => callback({ code: status.UNIMPLEMENTED }),
    };
    this.server.addService(OperatorServiceService, service);
    this.server.addService(WindowServiceService, windows);
    this.server.addService(KnowledgeServiceService, knowledge);
    const port = await new Promise<number>((resolve, reject) =>
      this.server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))));
    this.address = `127.0.0.1:${port}`;
  }

  stop(): void {
    this.server.forceShutdown();
  }
}

/** A device with a model and some telemetry: 30 hits, 10 misses, 20 tokens in two seconds. */
export function device(id: string, changed: Partial<Device> = {}): Device {
  return {
    id, online: true, lastSeenMs: 1_700_000_000_000n, desiredGeneration: 3n,
    desired: DeviceSpec.fromPartial({ lambda: 0.25, topJ: 1, routing: 2, cache: { $case: 'capacities', value: { experts: [16, 16] } }, modelHash: 'abc123' }),
    desiredHash: Buffer.from('00ff', 'hex'), drift: false, sources: [{ field: 'lambda', layer: 3, detail: '' }],
    traceUrl: '', bootId: 'boot-1', labels: { class: 'phone' }, operatorLabels: {}, held: false, identity: undefined,
    info: DeviceInfo.fromPartial({
      hostname: 'board', labels: { class: 'phone' },
      model: { hash: 'abc123', name: 'tinymoe', architecture: 'qwen2moe', experts: 32, topK: 4, moeLayers: [0, 1], status: 2 },
      limits: { maxCacheBytes: 4n << 20n, maxLambda: 1, maxCapacities: [16, 16] },
    }),
    reported: Reported.fromPartial({ state: 2, appliedGeneration: 3n, generation: 3n, effective: { lambda: 0.25, topJ: 1, routing: 2, capacities: [16, 16] } }),
    telemetry: TelemetryFrame.fromPartial({
      decodeTokens: 20n, decodeNs: 2_000_000_000n,
      layers: [{ layer: 0, hits: 20n, misses: 4n, events: 6n }, { layer: 1, hits: 10n, misses: 6n, events: 4n }],
    }),
    ...changed,
  };
}

/** The other side of the wire, for tests: real services whose devices a test writes, and that keep surfaces and knowledge. */
import { Server, ServerCredentials, type ServerWritableStream, type ServiceError, status } from '@grpc/grpc-js';
import { type Device, type DeviceKnowledge, type DeviceUse, KnowledgeServiceService, type KnowledgeServiceServer, LearnerServiceService, type LearnerServiceServer, type Proposal, type QualitySurface } from '@moefleet/proto';

export class ScriptedRegistry {
  devices: Device[] = [];
  /** by `surfaceKey` */
  readonly surfaces = new Map<string, QualitySurface>();
  readonly knowledge = new Map<string, DeviceKnowledge>();
  uses: DeviceUse[] = [];
  puts = 0;
  readonly proposed: Proposal[][] = [];
  readonly activities: string[] = [];
  /** every call but ReportActivity ends with it */
  fails: { code: status; details: string } | null = null;
  /** as a coordinator that streams nothing */
  old = false;
  calls = 0;
  private server: Server | null = null;
  private port = 0;

  get address(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** The same port at every start. */
  async start(): Promise<void> {
    const failure = () => {
      this.calls += 1;
      return this.fails && Object.assign(new Error(this.fails.details), this.fails) as unknown as ServiceError;
    };
    const unknown = () => (this.old ? Object.assign(new Error('no such call'), { code: status.UNIMPLEMENTED, details: 'no such call' }) as unknown as ServiceError : null);
    const service: LearnerServiceServer = {
      listLearnable: (_call, callback) => callback(failure(), { devices: this.devices }),
      streamLearnable: (call) => stream(call, failure() ?? unknown(), { devices: this.devices }),
      getSurface: (call, callback) => {
        const error = failure();
        const surface = this.surfaces.get(surfaceKey(call.request));
        callback(error ?? (surface ? null : { code: status.NOT_FOUND, details: 'no such surface' }), { surface });
      },
      putSurface: (call, callback) => {
        const error = failure();
        if (!error) {
          this.surfaces.set(surfaceKey(call.request.surface!), call.request.surface!);
          this.puts += 1;
        }
        callback(error, {});
      },
      propose: (call, callback) => {
        const error = failure();
        if (!error) this.proposed.push(call.request.proposals);
        callback(error, { rolloutId: 'rollout-1' });
      },
      reportActivity: (call, callback) => {
        this.activities.push(call.request.activity);
        callback(null, {});
      },
    };
    const server = new Server();
    server.addService(LearnerServiceService, service);
    const knowledge: KnowledgeServiceServer = {
      listKnowledge: (_call, callback) => callback(failure(), { devices: [...this.knowledge.values()] }),
      streamKnowledge: (call) => stream(call, failure() ?? unknown(), { devices: [...this.knowledge.values()] }),
      streamUse: (call) => stream(call, failure() ?? unknown(), { uses: this.uses.filter(({ modelHash, timeMs }) => modelHash === call.request.modelHash && timeMs >= call.request.sinceMs) }),
      putKnowledge: (call, callback) => {
        const error = failure();
        if (!error) for (const one of call.request.devices) this.knowledge.set(one.deviceId, one);
        callback(error, {});
      },
      explainLearner: (_call, callback) => callback({ code: status.UNIMPLEMENTED }),
    };
    server.addService(KnowledgeServiceService, knowledge);
    this.port = await new Promise<number>((resolve, reject) =>
      server.bindAsync(`127.0.0.1:${this.port}`, ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))));
    this.server = server;
  }

  stop(): void {
    this.server?.forceShutdown();
    this.server = null;
  }
}

export function surfaceKey({ modelHash, textHash }: Pick<QualitySurface, 'modelHash' | 'textHash'>): string {
  return `${modelHash} ${textHash}`;
}

function stream<Request, Response>(call: ServerWritableStream<Request, Response>, error: ServiceError | null, message: Response): void {
  if (error) return void call.emit('error', error);
  call.write(message);
  call.end();
}

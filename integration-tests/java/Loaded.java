// What Flume makes of agent files: reads every file as `flume-ng agent` does, for every agent whose keys are in it, and
// writes one JSON line for each: the components that would run, or why nothing does. Nothing is started.
//
// java -cp JARS Loaded.java RESULT FILE…

import com.google.gson.Gson;
import java.io.PrintWriter;
import java.lang.reflect.Field;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.*;
import org.apache.flume.Channel;
import org.apache.flume.NamedComponent;
import org.apache.flume.Sink;
import org.apache.flume.Source;
import org.apache.flume.conf.BatchSizeSupported;
import org.apache.flume.conf.TransactionCapacitySupported;
import org.apache.flume.node.*;

public class Loaded {
    public static void main(String[] arguments) throws Exception {
        Gson gson = new Gson();
        try (PrintWriter out = new PrintWriter(arguments[0], "UTF-8")) {
            for (int at = 1; at < arguments.length; at++) {
                Path file = Path.of(arguments[at]);
                for (String agent : agents(file)) {
                    Map<String, Object> line = new TreeMap<>();
                    line.put("file", file.getFileName().toString());
                    line.put("agent", agent);
                    try {
                        load(file, agent, line);
                    } catch (Throwable failed) {
                        line.put("fatal", failed.toString());
                    }
                    out.println(gson.toJson(line));
                }
            }
        }
        // Components may have left threads.
        System.exit(0);
    }

    static Set<String> agents(Path file) throws Exception {
        Set<String> names = new TreeSet<>();
        Properties properties = new Properties();
        try (var in = Files.newInputStream(file)) {
            properties.load(in);
        } catch (IllegalArgumentException unreadable) {
            names.add("a");
        }
        for (String key : properties.stringPropertyNames()) {
            int dot = key.indexOf('.');
            if (dot > 0) names.add(key.substring(0, dot).trim());
        }
        return names;
    }

    static void load(Path file, String agent, Map<String, Object> line) throws Exception {
        List<ConfigurationSource> sources = List.of(new FileConfigurationSource(file.toUri()));
        var loaded = new UriConfigurationProvider(agent, sources, null, null, 0).getConfiguration();
        Map<String, Object> of = new TreeMap<>();
        loaded.getSourceRunners().forEach((name, runner) -> of.put(name, source(runner.getSource())));
        line.put("sources", of);
        Map<String, Object> channels = new TreeMap<>();
        loaded.getChannels().forEach((name, channel) -> channels.put(name, channel(channel)));
        line.put("channels", channels);
        Map<String, Object> sinks = new TreeMap<>();
        Map<String, Object> groups = new TreeMap<>();
        loaded.getSinkRunners().forEach((name, runner) -> {
            Set<String> members = new TreeSet<>();
            for (Sink sink : sinks(runner.getPolicy())) {
                sinks.put(sink.getName(), sink(sink));
                members.add(sink.getName());
            }
            if (!members.equals(Set.of(name))) groups.put(name, members);
        });
        line.put("sinks", sinks);
        line.put("groups", groups);
    }

    static Map<String, Object> view(Object component) {
        Map<String, Object> view = new TreeMap<>();
        view.put("class", component.getClass().getName());
        if (component instanceof BatchSizeSupported sized) view.put("batch", sized.getBatchSize());
        return view;
    }

    static Map<String, Object> source(Source source) {
        Map<String, Object> view = view(source);
        var selector = source.getChannelProcessor().getSelector();
        List<String> channels = new ArrayList<>();
        for (Channel channel : selector.getAllChannels()) channels.add(channel.getName());
        view.put("channels", channels);
        return view;
    }

    static Map<String, Object> channel(Channel channel) {
        Map<String, Object> view = view(channel);
        if (channel instanceof TransactionCapacitySupported sized) view.put("transactionCapacity", sized.getTransactionCapacity());
        for (Field field : fields(channel)) {
            Object value = get(field, channel);
            if (field.getName().equals("capacity") && value instanceof Integer) view.put("capacity", value);
            if (channel.getClass().getSimpleName().equals("MemoryChannel") && value instanceof java.util.concurrent.BlockingDeque<?> queue) {
                view.put("capacity", queue.remainingCapacity());
            }
        }
        return view;
    }

    static Map<String, Object> sink(Sink sink) {
        Map<String, Object> view = view(sink);
        view.put("channels", List.of(sink.getChannel().getName()));
        return view;
    }

    /** The sinks that a processor gives work to. */
    static Set<Sink> sinks(Object processor) {
        Set<Sink> all = Collections.newSetFromMap(new IdentityHashMap<>());
        Set<Sink> live = Collections.newSetFromMap(new IdentityHashMap<>());
        for (Field field : fields(processor)) {
            Object value = get(field, processor);
            Collection<?> values = value instanceof Map<?, ?> map ? map.values() : value instanceof Collection<?> many ? many : value == null ? List.of() : List.of(value);
            for (Object one : values) {
                if (one instanceof Sink sink) (field.getName().equals("liveSinks") ? live : all).add(sink);
            }
        }
        return live.isEmpty() ? all : live;
    }

    static List<Field> fields(Object of) {
        List<Field> fields = new ArrayList<>();
        for (Class<?> type = of.getClass(); type != null && type != Object.class; type = type.getSuperclass()) {
            for (Field field : type.getDeclaredFields()) {
                if (!java.lang.reflect.Modifier.isStatic(field.getModifiers()) && field.trySetAccessible()) fields.add(field);
            }
        }
        return fields;
    }

    static Object get(Field field, Object of) {
        try {
            return field.get(of);
        } catch (IllegalAccessException error) {
            return null;
        }
    }
}
